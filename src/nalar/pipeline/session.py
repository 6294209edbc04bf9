"""What every stage of a run shares: the folder, the clock, the price, what is done, what to resume from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.evals import units
from nalar.kernels.ceiling import Ceiling, measure_ceiling
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.pipeline.config import RunConfig
from nalar.pipeline.observer import Observer
from nalar.pipeline.place import place_of
from nalar.pipeline.state import State, lost_work
from nalar.pipeline.writer import Writer
from nalar.plan.model import sampling_flops
from nalar.rl.reference import Reference
from nalar.run import Lost, Meter, Receipt, Run
from nalar.train.checkpoint import (
    Progress,
    Resumed,
    load_checkpoint,
    save_checkpoint,
    take_snapshot,
)
from nalar.train.rng import restore_random_state, seed_all
from nalar.train.shelf import Found, Shelf


class Sampled(Protocol):
    """A response to a prompt, wherever it came from."""

    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_response_tokens(self) -> int: ...


class LostEndError(UserError):
    """The checkpoint with which a stage ended is gone or damaged, so the stage is not done after all."""

    def __init__(self, stage: str, folder: Path, got: str) -> None:
        self.stage = stage
        super().__init__(
            at=str(folder),
            got=got,
            want=f"the checkpoint with which {stage} ended",
            hint="--resume does the end of the stage again",
        )


@dataclass(frozen=True)
class Learner:
    """What a stage trains, with all that a checkpoint of it needs."""

    model: Transformer
    optimizer: MuonClip
    tokenizer: Tokenizer
    reference: Reference | None = None
    """Of RL with a KL term."""


@dataclass
class Work:
    """Tokens and FLOPs since the last receipt."""

    tokens: int = 0
    flops: float = 0.0


C = TypeVar("C", bound=RunConfig)


@dataclass
class Session(Generic[C]):
    """One process working on one run. What writes does so within a `with` block, which ends when all is written."""

    config: C
    run: Run
    observer: Observer
    should_stop: Callable[[], bool]
    work: Work = field(default_factory=Work)
    recorded_tokens: int = 0
    """Of the stage at hand, in the ledger."""
    recorded_flops: float = 0.0
    """The same."""
    ceiling: Ceiling | None = None
    """None: not measured, and of how much of it is used nothing is said."""
    last_line: tuple[float, float] | None = None
    """FLOP and seconds of the stage at the last line of metrics; None before this session's first."""

    def __post_init__(self) -> None:
        self.place = place_of(self.config)
        self._shelf = Shelf(self.run.path / "checkpoints")
        self._writer = Writer(background=self.config.checkpoint.background)
        self._saved: Path | None = None

    def __enter__(self) -> Self:
        self.run.mend()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if value is not None and self._writer.is_busy:
            self.observer.note("the checkpoint that is being written is finished first")
        try:
            self._writer.wait()
        except Exception as error:
            if value is None:
                raise
            self.observer.note(f"the last checkpoint was not written: {error}")

    def is_done(self, stage: str) -> bool:
        return stage in self._state.done

    def mark_done(self, stage: str) -> None:
        """The commit of a stage: what it wrote is on the disk, and what a later kill leaves in the logs is cut off."""
        self._writer.wait()
        self.run.sync_logs()
        newest = self._shelf.of(stage)[-1:]
        checkpoint = newest[0].name if newest else None
        self._state.with_done(stage, self.run.log_bytes(), checkpoint).write(self.run)

    def reopen(self, lost: LostEndError) -> None:
        """A done stage that has lost its end goes on from the checkpoint before, or begins anew."""
        self.observer.note(f"{lost.at}: {lost.got}; {lost.stage} goes back to what was before")
        self._state.without(lost.stage).write(self.run)

    def start(
        self,
        stage: str,
        *,
        steps: int | None,
        resumed: Resumed | None = None,
        kept: Progress | None = None,
    ) -> Meter:
        """Begin a stage, or go on with it; the meter counts from what earlier sessions have used.

        The logs go back to where they were then, and so do the process's random generators.
        kept: how far a stage has come that keeps what it did in files of its own, and draws from no generator of the
        process.
        """
        if resumed is None:
            lost = self._go_back(kept.logs if kept else self._state.start_of_next())
            seed_all(self.config.seed, stage)
        else:
            lost = self._go_back(resumed.progress.logs)
            restore_random_state(resumed.random)
        earlier = self.run.stage_total(stage)
        self.work = Work()
        self.recorded_tokens = earlier.tokens if earlier else 0
        self.recorded_flops = earlier.flops if earlier else 0.0
        self.last_line = None
        until = resumed.progress if resumed else kept
        done = until.step if until else 0
        self.observer.stage_started(stage, steps=steps, done=done)
        return Meter(earlier, lost)

    def find_ceiling(self, model: Transformer) -> None:
        """Measure what this machine can do, once a session, and say it."""
        if self.ceiling is not None:
            return
        weight = model.head_weight
        self.ceiling = measure_ceiling(weight.device, weight.dtype)
        side, dtype = self.ceiling.side, str(self.ceiling.dtype).removeprefix("torch.")
        self.observer.note(
            f"ceiling: {units.scaled(self.ceiling.flops_per_s, 'FLOP/s')}, the best of products of "
            f"{side} × {side} {dtype} numbers here and now; MFU is FLOP by formula a second over this"
        )

    def add_sampling(self, model: ModelConfig, groups: Sequence[Sequence[Sampled]]) -> None:
        """Count sampled groups: each prompt was prefilled once."""
        for group in groups:
            lengths = [sampled.num_response_tokens for sampled in group]
            self.work.tokens += sum(lengths)
            self.work.flops += sampling_flops(model, group[0].num_prompt_tokens, lengths)

    def receipt(self, stage: str, meter: Meter) -> None:
        """Put what was used since the last receipt into the ledger."""
        lap = meter.lap()
        self.run.record(
            Receipt(
                name=stage,
                tokens=self.work.tokens,
                flops=self.work.flops,
                wall_s=lap.wall_s,
                usd=self.config.price.usd(lap.wall_s),
                energy_wh=lap.energy_wh,
                started_at=lap.started_at,
            )
        )
        self.recorded_tokens += self.work.tokens
        self.recorded_flops += self.work.flops
        self.work = Work()

    def log(self, stage: str, step: int, meter: Meter, values: Mapping[str, float]) -> None:
        """Write a step's metrics and show them, with time, cost and speed of the stage so far."""
        self._writer.check()
        total = meter.total
        tokens = self.recorded_tokens + self.work.tokens
        shown = dict(values) | {
            "tokens": tokens,
            "wall_s": total.wall_s,
            "usd": self.config.price.usd(total.wall_s),
            "tokens_per_s": tokens / total.wall_s if total.wall_s else 0.0,
        }
        flops = self.recorded_flops + self.work.flops
        if self.ceiling and self.last_line:
            seconds = max(total.wall_s - self.last_line[1], 1e-9)
            used = (flops - self.last_line[0]) / seconds
            shown["mfu_frac"] = used / self.ceiling.flops_per_s
        self.last_line = flops, total.wall_s
        if total.energy_wh is not None:
            shown["energy_wh"] = total.energy_wh
        self.run.log_metrics(stage, step, shown)
        self.observer.step(stage, step, shown)

    def save(
        self,
        stage: str,
        step: int,
        learner: Learner,
        meter: Meter,
        *,
        is_kept: bool = False,
        loop: Mapping[str, Any] | None = None,
    ) -> None:
        """A receipt and a checkpoint, unless this step has them; the checkpoint becomes the run's model.

        loop: what the stage's loop remembers beside weights, optimizer and step, as JSON.

        Returns when all that it needs has been copied. What fails in writing it is raised by the next `log` or `save`,
        or at the end of the stage.
        """
        folder = self._shelf.place(stage, step)
        if folder == self._saved:
            return
        self._writer.wait()  # before the copy: one is in memory at a time
        self.receipt(stage, meter)
        progress = Progress(
            stage=stage,
            step=step,
            is_kept=is_kept,
            logs=self.run.log_bytes(),
        )
        model, tokenizer, background = learner.model, learner.tokenizer, self._writer.background
        snapshot = take_snapshot(
            model,
            learner.optimizer,
            progress,
            copy=background,
            reference=None if learner.reference is None else learner.reference.state(),
            loop=loop,
        )
        token_ids = tokenizer.token_ids

        def write() -> None:
            self.run.sync_logs()
            save_checkpoint(folder, snapshot, token_ids=token_ids, save_tokenizer=tokenizer.save)
            self.run.point_model_to(folder)
            self._retain(stage)

        self._writer.do(write)
        self._saved = folder

    def resume(self, stage: str, *, base: Path | None = None) -> Resumed | None:
        """The newest whole checkpoint of a stage that is under way; None where it has none.

        A damaged one is named, set aside, and done without. base: what the stage's adapters are on, if it trains such.
        """
        found = self._shelf.newest(stage)
        if found is None:
            return None
        self.run.point_model_to(found.folder)
        self._set_aside(found)
        self._retain(stage)
        self._saved = found.folder
        place = self.place
        return load_checkpoint(found.folder, device=place.device, dtype=place.dtype, base=base)

    def load(self, stage: str) -> Resumed:
        """The checkpoint with which a stage ended; LostEndError where it is not whole."""
        found = self._shelf.newest(stage)
        if found is None:
            raise LostEndError(stage, self._shelf.folder, f"no checkpoint of {stage}")
        for folder, wrong in found.damaged.items():
            raise LostEndError(stage, folder, f"a damaged checkpoint: {wrong}")
        end = self._state.checkpoints.get(stage, found.folder.name)
        if end != found.folder.name:
            raise LostEndError(stage, self._shelf.folder / end, "no such folder")
        return load_checkpoint(found.folder, device=self.place.device, dtype=self.place.dtype)

    def _set_aside(self, found: Found) -> None:
        for folder, wrong in found.damaged.items():
            aside = self._shelf.set_aside(folder)
            self.observer.note(
                f"{folder}: damaged: {wrong}. Going on from the one before, {found.folder.name}; "
                f"the damaged one is kept as {aside.name}"
            )

    def _retain(self, stage: str) -> None:
        keeping = self.config.checkpoint
        self._shelf.retain(stage, keep=keeping.keep, keep_marked=keeping.keep_slices)

    def _go_back(self, logs: Mapping[str, int] | None) -> Lost:
        """Cut off what was logged after this; returns what that had cost. None: the logs stay as they are."""
        if logs is None:
            return Lost()
        for name, size in self.run.log_bytes().items():
            if size < logs.get(name, 0):
                self.observer.note(f"{self.run.path / name}: lines are missing that were there")
        state, beyond = self._state, self.run.beyond(logs)
        pending = state.lost if state.lost and state.lost.logs == logs else None
        lost = lost_work(self.run, beyond, pending)
        if beyond.metrics or beyond.receipts:
            state.with_lost(lost, logs).write(self.run)  # first: a kill on the way loses no count
        self.run.cut_back(logs)
        return lost

    @property
    def _state(self) -> State:
        return State.read(self.run)
