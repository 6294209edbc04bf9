"""What pretraining and fine-tuning share: stages in their order, and the training of a model slice by slice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol, TypeVar

import torch

from nalar.config import UserError
from nalar.pipeline.config import RunConfig, lora_of
from nalar.pipeline.idle_experts import IdleExperts
from nalar.pipeline.observer import Observer
from nalar.pipeline.session import Learner, LostEndError, Session
from nalar.pipeline.state import Outcome
from nalar.pipeline.tensorboard import watched
from nalar.plan.model import adapter_params, sequence_flops
from nalar.run import Run
from nalar.train.checkpoint import Resumed
from nalar.train.config import PretrainConfig
from nalar.train.pretrain import Batches, Progress, pretrain_slice, steps_per_slice
from nalar.train.step import StepMetrics

MAX_SKIPPED = 10
C = TypeVar("C", bound=RunConfig)
ShouldStop = Callable[[], bool]


class Trained(Enum):
    """How training ended."""

    ENOUGH = "what it was to reach is reached"
    ALL = "every slice is trained"
    STOPPED = "told to stop, and all is saved"


def run_stages(
    config: C,
    run: Run,
    observer: Observer,
    should_stop: Callable[[], bool],
    stages: Mapping[str, Callable[[Session[C]], Outcome]],
) -> Outcome:
    """Do every stage, in this order, that the run has not done."""
    torch.set_num_threads(config.threads)
    with (
        watched(config, run, observer) as observer,
        Session(config, run, observer, should_stop) as session,
    ):
        while left := [stage for stage in stages if not session.is_done(stage)]:
            try:
                outcome = stages[left[0]](session)
            except LostEndError as lost:
                session.reopen(lost)
                continue
            if outcome is not Outcome.FINISHED:
                return outcome
            session.mark_done(left[0])
            observer.stage_finished(left[0])
    return Outcome.FINISHED


class TrainSlice(Protocol):
    """Trains from a step to the end of its slice, or until told to stop; returns steps done in all."""

    def __call__(
        self, *, first_step: int, on_step: Callable[[Progress], None], should_stop: ShouldStop
    ) -> int: ...


@dataclass(frozen=True)
class Training:
    """A stage that trains on batches, in equal slices."""

    stage: str
    learner: Learner
    config: PretrainConfig
    steps_per_slice: int
    train_slice: TrainSlice
    remedy: str
    """What to try where its steps are dropped, one after another."""

    @classmethod
    def on_tokens(
        cls, stage: str, learner: Learner, batches: Batches, config: PretrainConfig, *, remedy: str
    ) -> "Training":
        """Of a model that predicts the next token."""
        per_slice = steps_per_slice(config, batches.tokens_per_step)
        train = partial(pretrain_slice, learner.model, learner.optimizer, batches, config)
        return cls(stage, learner, config, per_slice, train, remedy)


def train_slices(
    session: Session[C],
    training: Training,
    resumed: Resumed | None,
    is_enough: Callable[[int], bool] = lambda _: False,
) -> Trained:
    """Train to the end of all slices, or of one of which `is_enough` says so by its number, counted from 1.

    Logs, saves and counts on the way; the last receipt is written.
    """
    stage, learner, config = training.stage, training.learner, training.config
    per_slice = training.steps_per_slice
    total = per_slice * config.max_slices
    step = resumed.progress.step if resumed else 0
    with session.start(stage, steps=total, resumed=resumed) as meter:
        session.find_ceiling(learner.model)
        alarm = IdleExperts()

        def save(step: int) -> None:
            session.save(stage, step, learner, meter, is_kept=step % per_slice == 0)

        def on_step(progress: Progress) -> None:
            _count(session, training, progress)
            if progress.step % config.log_every_steps == 0:
                metrics = progress.outcome.metrics()
                refuse_endless_skips(training, progress.step, metrics)
                session.log(stage, progress.step, meter, step_values(metrics))
                if warning := alarm.see(metrics.idle):
                    session.observer.note(warning)
            every = config.save_every_steps
            if every and progress.step % every == 0:
                save(progress.step)

        while True:
            at_boundary = step > 0 and step % per_slice == 0
            enough = at_boundary and is_enough(step // per_slice)
            if enough or step >= total:
                session.receipt(stage, meter)
                return Trained.ENOUGH if enough else Trained.ALL
            step = training.train_slice(
                first_step=step, on_step=on_step, should_stop=session.should_stop
            )
            save(step)
            if session.should_stop():
                return Trained.STOPPED


def _count(session: Session[C], training: Training, progress: Progress) -> None:
    model, with_mtp = training.learner.model.config, training.config.mtp_loss_weight > 0
    adapters = adapter_params(model, lora_of(session.config))
    session.work.tokens += sum(progress.lengths)
    session.work.flops += sum(
        sequence_flops(model, n, backward=True, with_mtp=with_mtp, adapter_params=adapters)
        for n in progress.lengths
    )


def refuse_endless_skips(training: Training, step: int, metrics: StepMetrics) -> None:
    """UserError where so many steps in a row were dropped that the run would go on without learning."""
    if metrics.skipped_in_a_row < MAX_SKIPPED:
        return
    what = (
        f"the gradient of {metrics.bad_parameter} is not finite"
        if metrics.bad_parameter
        else "a loss or gradient far above those before"
    )
    raise UserError(
        at=f"{training.stage}, step {step}",
        got=f"{metrics.skipped_in_a_row} steps in a row dropped; at the last, {what}",
        want="steps that count",
        hint=training.remedy,
    )


def step_values(metrics: StepMetrics) -> dict[str, float]:
    """A step's report as flat metrics."""
    values = {f"load_frac/{i}": frac for i, frac in enumerate(metrics.layer_load_frac)}
    for name, value in vars(metrics).items():
        if isinstance(value, (int, float)):
            values[name] = float(value)
    return values
