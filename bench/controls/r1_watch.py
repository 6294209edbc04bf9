"""A run of RL as its alarms saw it, and as it was in truth: read from its metrics and the rollouts that it kept."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from controls.ladder_results import thinned
from nalar.data.tokenizer import Tokenizer
from nalar.evals.results import Finite
from nalar.pipeline.config import RlRunConfig
from nalar.pipeline.r1_measure import rate_of
from nalar.rl.alarms import Watch
from nalar.rl.config import RLConfig
from nalar.rl.rollout import Rollout
from nalar.rl.store import read_rows
from nalar.run import ROLLOUTS, Metric, Run
from nalar.tasks.problem import Task
from nalar.tasks.registry import open_task

CURVES = (
    "reward",
    "preference_score",
    "safety_score",
    "accuracy/",
    "held_out_pass_at_1/",
    "response_tokens/",
    "entropy",
    "teacher_kl",
)
"""Beginnings of the names of metrics that are kept."""
GAMED = "reward and truth part"
"""The name of the alarm for a reward that is gamed."""


class Said(Finite):
    """An alarm."""

    step: int
    name: str
    metric: str
    value: float | None
    """None: not a finite number."""
    limit: float | None


class Truth(Finite):
    """Responses to one task that were trained on at one step."""

    step: int
    task: str
    score: float | None
    """Mean that the models gave to what they scored, from 0 to 1. None: they scored nothing."""
    quality: float
    """Mean rating by the task itself, in [0, 1]."""
    correct: float
    """Share."""


class Watched(Finite):
    """One run of RL."""

    steps: int
    tasks: list[str]
    """Words of its config."""
    model_rewards_last_steps: int | None
    looks_every_steps: int | None
    alarms: list[Said]
    quick_alarms: list[Said]
    """Those that half the window of steps would have set off."""
    curves: dict[str, list[list[float]]]
    """By metric: pairs of step and value, thinned."""
    truth: list[Truth]
    """Of the rollouts that were kept, for tasks that rate answers."""

    @property
    def gamed(self) -> Said | None:
        """The first alarm that a reward is gamed."""
        return next((said for said in self.alarms if said.name == GAMED), None)


def watched(run: Run, *, with_truth: bool) -> Watched:
    """A run of RL, as far as it came. with_truth: read the rollouts that it kept."""
    config = RlRunConfig.model_validate(run.info.config)
    metrics = run.metrics("rl")
    return Watched(
        steps=config.rl.steps,
        tasks=list(config.rl.tasks),
        model_rewards_last_steps=config.rl.reward.model_rewards_last_steps,
        looks_every_steps=config.rl.alarms.held_out_every_steps,
        alarms=alarms(metrics, config.rl, config.dtype),
        quick_alarms=alarms(metrics, quick(config.rl), config.dtype),
        curves=thinned(metrics, CURVES),
        truth=truth(run, config.rl.tasks) if with_truth else [],
    )


def alarms(metrics: Sequence[Metric], config: RLConfig, dtype: str) -> list[Said]:
    """What a run said while it went on: alarms depend on nothing but its metrics."""
    watch = Watch(config, dtype)
    return [
        Said(
            step=alarm.step,
            name=alarm.name,
            metric=alarm.finding.metric,
            value=_finite(alarm.finding.value),
            limit=_finite(alarm.finding.limit),
        )
        for line in metrics
        for alarm in watch.see(line.step, line.values)
    ]


def _finite(number: float) -> float | None:
    return round(number, 4) if math.isfinite(number) else None


def quick(config: RLConfig) -> RLConfig:
    """With half the window: alarms compare fewer steps, and so speak of shorter stretches."""
    window = max(1, config.alarms.window_steps // 2)
    alarms = config.alarms.model_copy(update={"window_steps": window})
    return config.model_copy(update={"alarms": alarms})


def truth(run: Run, words: Iterable[str]) -> list[Truth]:
    """Of the rollouts that a run kept; none where its tasks rate no answer."""
    tasks = {task.id: task for task in (open_task(word, at="rl.tasks") for word in words)}
    rated = {name: task for name, task in tasks.items() if rate_of(task) is not None}
    if not rated or not (paths := sorted((run.path / ROLLOUTS).glob("step-*.jsonl"))):
        return []
    tokenizer, found = Tokenizer.load(run.model_dir()), list[Truth]()
    for path in paths:
        rows = read_rows(path)
        for name, task in rated.items():
            own = [row.rollout(tokenizer) for row in rows if row.problem.task == name]
            if own:
                found.append(_true(rows[0].step, task, own))
    return found


def _true(step: int, task: Task, rollouts: Sequence[Rollout]) -> Truth:
    """rollouts: of this step and task."""
    rate = rate_of(task)
    assert rate is not None
    scores = [fmean(one.scores.values()) for one in rollouts if one.scores]
    return Truth(
        step=step,
        task=task.id,
        score=round(fmean(scores), 4) if scores else None,
        quality=round(fmean(rate(one.problem, one.parsed.answer) for one in rollouts), 4),
        correct=fmean(one.correct for one in rollouts),
    )
