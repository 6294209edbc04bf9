"""Who watches a pipeline hears of its stages' own runs under one name each: `rl1/rl`."""

from collections.abc import Mapping

from nalar.pipeline.observer import Observer


class StageObserver:
    """Passes on what a stage's run says, with the stage's name before it."""

    def __init__(self, observer: Observer, stage: str) -> None:
        self._observer, self._stage = observer, stage

    def stage_started(self, stage: str, *, steps: int | None, done: int = 0) -> None:
        self._observer.stage_started(f"{self._stage}/{stage}", steps=steps, done=done)

    def step(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._observer.step(f"{self._stage}/{stage}", step, values)

    def note(self, text: str) -> None:
        self._observer.note(f"{self._stage}: {text}")

    def stage_finished(self, stage: str) -> None:
        self._observer.stage_finished(f"{self._stage}/{stage}")
