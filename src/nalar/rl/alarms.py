"""Alarms for every known way in which RL fails in silence. They read metrics alone; no torch.

What each looks for, its limit and what to do about it: docs/alarms.md. Where a metric is not reported, as those of
experts by a dense model, an alarm that needs it has nothing to say.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nalar.rl.config import RLConfig

Series = Mapping[str, Sequence[tuple[int, float]]]
"""By metric: steps and values, the newest last."""


class Finding(NamedTuple):
    """A value that is beyond its limit."""

    metric: str
    value: float
    limit: float


Rule = Callable[[Series, RLConfig], Iterator[Finding]]


@dataclass(frozen=True)
class Alarm:
    """What to tell the user."""

    name: str
    step: int
    finding: Finding
    advice: str

    def __str__(self) -> str:
        metric, value, limit = self.finding
        return (
            f"ALARM {self.name} at step {self.step}: {metric} is {value:.4g}, its limit is {limit:.4g}. "
            f"{self.advice}"
        )


class Watch:
    """Sees every step's metrics, and says what is wrong when it begins: again only once it had been right.

    On resuming it is shown the metrics of the steps before; it keeps nothing else.
    """

    def __init__(self, config: RLConfig, dtype: str) -> None:
        """dtype: of the weights, such as bfloat16."""
        alarms = config.alarms.rounded_as(dtype)
        self._config = config.model_copy(update={"alarms": alarms})
        self._series: dict[str, list[tuple[int, float]]] = {}
        self._lasting: set[tuple[str, str]] = set()

    def see(self, step: int, values: Mapping[str, float]) -> list[Alarm]:
        """The alarms that this step sets off."""
        for metric, value in values.items():
            self._series.setdefault(metric, []).append((step, value))
        found = {
            (name, finding.metric): Alarm(name, step, finding, advice)
            for name, (rule, advice) in RULES.items()
            for finding in rule(self._series, self._config)
        }
        new = [alarm for key, alarm in found.items() if key not in self._lasting]
        self._lasting = set(found)
        return new


def _mean(values: Sequence[float]) -> float:
    """nan where infinities cancel out: fmean would raise, and an alarm must not end a run."""
    return sum(values) / len(values)


def _mean_of_last(series: Series, metric: str, count: int) -> float | None:
    """None: there are not so many yet."""
    values = [value for _, value in series.get(metric, ())]
    return _mean(values[-count:]) if len(values) >= count else None


def _last(series: Series, metric: str) -> float | None:
    return series[metric][-1][1] if metric in series else None


def _newest(series: Series, prefix: str) -> Iterator[tuple[str, float]]:
    """Metrics of that name, or of that name and a task, with their newest values."""
    for metric, entries in series.items():
        if metric == prefix or metric.startswith(prefix + "/"):
            yield metric, entries[-1][1]


def _share_above(counted: str, of: Sequence[str], field: str, *, at_once: bool = False) -> Rule:
    """The share of one count in others is above the config's limit: over the last `window_steps`, or now."""

    def rule(series: Series, config: RLConfig) -> Iterator[Finding]:
        limit: float = getattr(config.alarms, field)
        window = 1 if at_once else config.alarms.window_steps
        part = _mean_of_last(series, counted, window)
        whole = sum(_mean_of_last(series, name, window) or 0 for name in of)
        if part is not None and whole and part / whole > limit:
            yield Finding(f"{counted} / {' + '.join(of)}", part / whole, limit)

    return rule


def _above(metric: str, field: str) -> Rule:
    """The newest value of a metric is above the config's limit."""

    def rule(series: Series, config: RLConfig) -> Iterator[Finding]:
        limit: float = getattr(config.alarms, field)
        for name, value in _newest(series, metric):
            if value > limit:
                yield Finding(name, value, limit)

    return rule


def _lastingly_above(metric: str, field: str) -> Rule:
    """The mean of the last `window_steps` values is."""

    def rule(series: Series, config: RLConfig) -> Iterator[Finding]:
        limit: float = getattr(config.alarms, field)
        mean = _mean_of_last(series, metric, config.alarms.window_steps)
        if mean is not None and mean > limit:
            yield Finding(metric, mean, limit)

    return rule


def _collapsed(metric: str, field: str) -> Rule:
    """The mean of the last `window_steps` values is below a share of that of the first ones."""

    def rule(series: Series, config: RLConfig) -> Iterator[Finding]:
        window = config.alarms.window_steps
        for name, _ in list(_newest(series, metric)):
            values = [value for _, value in series[name]]
            if len(values) < 2 * window:
                continue
            limit = getattr(config.alarms, field) * _mean(values[:window])
            now = _mean(values[-window:])
            if now < limit:
                yield Finding(name, now, limit)

    return rule


def _shortened(series: Series, config: RLConfig) -> Iterator[Finding]:
    """Lengths with and without thinking are not compared with each other: each falls from its own first ones."""
    metric = "mode_tokens" if config.no_thinking_frac else "response_tokens"
    yield from _collapsed(metric, "min_length_frac")(series, config)


def _apart(series: Series, config: RLConfig) -> Iterator[Finding]:
    """Of steps with tokens of this policy alone: between an older one and the trainer there is more than rounding."""
    looked = series.get("first_log_ratio_rms", [])
    age = dict(series.get("max_staleness", []))
    if looked and not age.get(looked[-1][0]):
        yield from _above("first_log_ratio_rms", "max_log_ratio_rms")(series, config)


def _too_stale(series: Series, config: RLConfig) -> Iterator[Finding]:
    """Where samples are drawn to their ends in one step, all are of the newest policy."""
    rollout = config.rollout
    limit = 0 if rollout.step_tokens is None else rollout.max_staleness
    oldest = _last(series, "max_staleness")
    if oldest is not None and oldest > limit and rollout.debug != "train_only":
        yield Finding("max_staleness", oldest, limit)


def _unless_solved(rule: Rule) -> Rule:
    """What befalls a run that has learned its tasks is no alarm: groups agree, and entropy is nearly gone."""

    def unless(series: Series, config: RLConfig) -> Iterator[Finding]:
        window = config.alarms.window_steps
        shares = [_mean_of_last(series, name, window) for name, _ in _newest(series, "accuracy")]
        known = [share for share in shares if share is not None]
        if not known or _mean(known) < config.alarms.solved_frac:
            yield from rule(series, config)

    return unless


def _unless_taught(rule: Rule) -> Rule:
    """A teacher has something to say of groups whose rewards are all equal, and the policy comes to write as long and
    as surely as it does: how far it still is from it, `teacher_kl` says."""

    def unless(series: Series, config: RLConfig) -> Iterator[Finding]:
        if config.distil.teacher is None:
            yield from rule(series, config)

    return unless


def _not_finite(series: Series, config: RLConfig) -> Iterator[Finding]:
    for metric, entries in series.items():
        if not math.isfinite(entries[-1][1]):
            yield Finding(metric, entries[-1][1], math.inf)
    for metric, skipped in _newest(series, "skipped_updates"):
        if skipped:
            yield Finding(metric, skipped, 0)


def _idle_term(series: Series, config: RLConfig) -> Iterator[Finding]:
    """A part of the loss that is configured, and adds nothing, step after step."""
    for metric in list(series):
        if not metric.startswith("loss/"):
            continue
        last = [value for _, value in series[metric]][-config.alarms.window_steps :]
        if len(last) == config.alarms.window_steps and not any(last):
            yield Finding(metric, 0.0, 0.0)


def _denominator(series: Series, config: RLConfig) -> Iterator[Finding]:
    """Tokens that the loss counted are those that the model drew, in samples that teach: no more and no fewer."""
    counted, drawn = _last(series, "counted_tokens"), _last(series, "trained_tokens")
    if counted is not None and drawn is not None and counted != drawn:
        yield Finding("counted_tokens", counted, drawn)


def _held_out(series: Series, name: str) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    prefix = f"held_out_{name}/"
    for metric, entries in series.items():
        if metric.startswith(prefix) and len(entries) > 1:
            yield metric.removeprefix(prefix), list(entries)


REWARDS = ("reward", "preference_score", "safety_score")
"""What a policy is trained to raise: all together, and by models that score, who can be fooled. Their score may rise
at the price of a correct answer while their sum hardly moves."""


def _reward_apart(series: Series, config: RLConfig) -> Iterator[Finding]:
    """A reward rose since its first steps, and held-out problems are solved less often than since then at best."""
    found = [_risen(series.get(name, ()), config) for name in REWARDS]
    begins = [begin for begin in found if begin is not None]
    for task, entries in _held_out(series, "pass_at_1") if begins else ():
        limits = [_best_since(entries, begin) - config.alarms.min_change for begin in begins]
        if entries[-1][1] < max(limits):
            yield Finding(f"held_out_pass_at_1/{task}", entries[-1][1], max(limits))


def _risen(entries: Sequence[tuple[int, float]], config: RLConfig) -> int | None:
    """The first step of a reward that has risen by more than `min_change`; None where it has not."""
    window = config.alarms.window_steps
    values = [value for _, value in entries]
    if len(values) < 2 * window:
        return None
    has_risen = _mean(values[-window:]) - _mean(values[:window]) > config.alarms.min_change
    return entries[0][0] if has_risen else None


def _best_since(entries: Sequence[tuple[int, float]], begin: int) -> float:
    """Of the looks from a step on, and the last one before it."""
    before = [value for step, value in entries if step < begin][-1:]
    return max([*before, *(value for step, value in entries if step >= begin)])


def _narrowed(series: Series, config: RLConfig) -> Iterator[Finding]:
    """Held-out problems are solved more often at the first try, and fewer of them at all."""
    once = dict(_held_out(series, "pass_at_1"))
    for task, entries in _held_out(series, "pass_at_k"):
        if task not in once:
            continue
        gained = once[task][-1][1] - once[task][0][1]
        limit = entries[0][1] - config.alarms.min_change
        if gained > config.alarms.min_change and entries[-1][1] < limit:
            yield Finding(f"held_out_pass_at_k/{task}", entries[-1][1], limit)


RULES: Mapping[str, tuple[Rule, str]] = {
    "not finite": (
        _not_finite,
        "The update was left out. Go back to the checkpoint before with a lower rl.lr.",
    ),
    "wrong mask": (
        _denominator,
        "The loss counts tokens that the model did not draw, or leaves out some that it did: a fault "
        "of the program. Keep the run's rollouts and report it.",
    ),
    "sampler and trainer apart": (
        _apart,
        "Before its first update a step's samples should be the policy's own. Look for stale weights in "
        "the sampler or a forward pass that differs; NALAR_KERNELS_OFF=all tells whether a kernel is to blame.",
    ),
    "experts chosen otherwise": (
        _above("rerouted_frac", "max_rerouted_frac"),
        "Sampler and trainer send the same tokens to other experts: with float32 a fault, with bfloat16 "
        "a reason to switch rl.correction on.",
    ),
    "stale samples": (
        _too_stale,
        "Samples are of older policies than rl.rollout allows: the sampler was not told of new weights.",
    ),
    "nothing to learn from": (
        _unless_taught(
            _unless_solved(
                _share_above("silent_groups", ("kept_groups", "dropped_groups"), "max_silent_frac")
            )
        ),
        "All samples of nearly every group earn the same. Take easier or harder problems, a larger "
        "rl.group_size, or rl.rollout.max_refills.",
    ),
    "verifier fails": (
        _share_above("verifier_errors", ("samples",), "max_verifier_error_frac", at_once=True),
        "Its samples have no reward. The error stands beside a sample: nalar samples RUN.",
    ),
    "checks run over their time": (
        _share_above("timeouts", ("samples",), "max_timeout_frac"),
        "Answers or verifiers need longer than they may: raise the limit, or look at what the model writes.",
    ),
    "reward and truth part": (
        _reward_apart,
        "A reward rises while held-out problems are solved less often: it is gamed or is wired wrongly. "
        "Read samples with high reward: nalar samples RUN. Where a model scores, give it a lower weight, or "
        "a say in the last steps alone: rl.reward.model_rewards_last_steps.",
    ),
    "fewer problems within reach": (
        _narrowed,
        "More is solved at once and less at all: the policy narrows. Lower rl.lr, set "
        "rl.objective.entropy_coef or rl.kl.coef, or stop here.",
    ),
    "responses collapse": (
        _unless_taught(_shortened),
        "Responses are a fraction of what they were: the base may not check its own work (nalar demo "
        "probes that), or a length penalty is too strong.",
    ),
    "entropy collapses": (
        _unless_taught(_unless_solved(_collapsed("entropy", "min_entropy_frac"))),
        "The policy hardly varies any more, so groups soon teach nothing. Raise "
        "rl.objective.clip_high, set rl.objective.entropy_coef, or lower rl.lr.",
    ),
    "repetition": (
        _lastingly_above("looping_frac", "max_looping_frac"),
        "Many responses end in a loop. Lower rl.lr, and see whether rl.max_tokens rewards going on.",
    ),
    "a part of the loss is idle": (
        _idle_term,
        "It is configured and adds exactly 0: its coefficient or its input is not connected.",
    ),
}
"""By name: what finds it, and what to do. The gravest first."""
