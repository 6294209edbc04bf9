"""TensorBoard files beside `metrics.jsonl`: an observer that writes what it is told and hands it on."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nalar.disk import disk_errors
from nalar.pipeline.config import RunConfig
from nalar.pipeline.observer import Observer
from nalar.pipeline.preflight import refuse_if_not_installed
from nalar.run import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
FLUSH_S = 10


class TensorBoard:
    """One folder a stage, since each counts its own steps: `tensorboard/pretrain`, `tensorboard/rl`.

    Where a stage goes on after a step, readers drop what an earlier session wrote beyond it, as metrics.jsonl does.
    """

    def __init__(self, folder: Path, observer: Observer) -> None:
        self._folder, self._observer = folder, observer
        self._stage: str | None = None
        self._done = 0
        self._writer: SummaryWriter | None = None

    def stage_started(self, stage: str, *, steps: int | None, done: int = 0) -> None:
        self.close()
        self._stage, self._done = stage, done
        self._observer.stage_started(stage, steps=steps, done=done)

    def step(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        with disk_errors(self._folder):
            writer = self._writer or self._open(stage)
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        self._observer.step(stage, step, values)

    def note(self, text: str) -> None:
        self._observer.note(text)

    def stage_finished(self, stage: str) -> None:
        self.close()
        self._observer.stage_finished(stage)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with disk_errors(self._folder):
                writer.close()

    def _open(self, stage: str) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter  # takes a second

        self._writer = SummaryWriter(
            str(self._folder / stage), purge_step=self._done + 1, flush_secs=FLUSH_S
        )
        return self._writer


@contextlib.contextmanager
def watched(config: RunConfig, run: Run, observer: Observer) -> Iterator[Observer]:
    """The observer that a run reports to: with files beside it where the config asks for them."""
    if not config.tensorboard:
        yield observer
        return
    refuse_if_not_installed(config)
    board = TensorBoard(run.path / FOLDER, observer)
    try:
        yield board
    finally:
        board.close()
