"""What a step of RL reports."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from statistics import fmean

from nalar.data.tool_use import ToolTally, tally
from nalar.rl.correction import Mismatch
from nalar.rl.looping import ends_in_a_loop
from nalar.rl.rollout import Collected, Rollout, is_silent
from nalar.rl.step import UpdateMetrics
from nalar.tasks.problem import Task
from nalar.tasks.traces import checks_itself


@dataclass(frozen=True)
class RLProgress:
    """What one RL step reports. Shares lie in [0, 1]."""

    step: int
    """Steps done."""
    reward: float
    accuracy: dict[str, float]
    """By task id, over this step's samples."""
    level_accuracy: dict[str, float]
    """The same by task and level, as `id,level`; of tasks with levels."""
    level_frac: dict[str, float]
    """Which share of a task's groups were of each level, likewise."""
    response_tokens: dict[str, float]
    """Mean length by task id."""
    self_check_frac: float | None
    """Of the responses to tasks that search and are asked to think: a try marked wrong and another after it."""
    truncated_frac: float
    looping_frac: float
    """Of the responses, those that end in a loop."""
    samples: int
    verifier_errors: int
    """Answers without a verdict, in this step."""
    timeouts: int
    """Answers whose check, or whose own program, ran over its time; in this step."""
    silent_groups: int
    """Groups whose rewards were all equal, and so taught nothing, or what a teacher said of them alone."""
    entropy: float | None
    clipped_frac: float | None
    clipped_high_frac: float | None
    """Of the tokens in the loss, those held back because their ratio is too high."""
    clipped_low_frac: float | None
    loss: dict[str, float]
    """Each term of it, weighted: policy, and kl and entropy where they are on. Means over the updates."""
    reference_kl: float | None
    """Of the policy from the reference, nats a token, by k3; where one is kept."""
    teacher_kl: float | None
    """Of the policy from the teacher, likewise; where there is one."""
    mean_weight: float | None
    """Of the correction's importance weights, before they are held: 1 where trainer and sampler agree."""
    held_frac: float | None
    """Tokens whose weight the correction held below its cap, or that it left out."""
    grad_norm: float | None
    max_load_frac: float | None
    """Load of the busiest expert of any layer and update, as a multiple of the mean."""
    idle_experts: int | None
    """Experts, over all layers, that got no token in any update."""
    idle: tuple[tuple[int, int], ...] | None
    """Those experts: place among the layers with a mixture, place in it."""
    skipped_updates: int
    """Updates whose gradient was not finite: nothing moved."""
    first_log_ratio_rms: float | None
    """Trainer against sampler before the first update of the step: rounding alone, where nothing is stale."""
    sampler_kl: float | None
    """Of the sampler from the trainer, nats a token, by k3, before the first update; where the correction looked."""
    sampled_tokens: int
    """Drawn in this step, by unfinished samples too."""
    prompt_tokens: int
    trained_tokens: int
    counted_tokens: int
    """Those that the loss had in it: anything but `trained_tokens` is a wrong mask."""
    denominator: float | None
    """What the loss of an update is divided by; the mean over the updates."""
    share_sum: float | None
    """What all tokens of an update count together: 1 where the loss is a mean. The mean over the updates."""
    begun_groups: int
    dropped_groups: int
    """Of equal rewards, and set aside for further prompts; they count in rewards, accuracy and lengths."""
    kept_groups: int
    """What was trained on."""
    unfinished_groups: int
    """They wait for the next step."""
    stale_frac: dict[int, float]
    """Share of the tokens trained on by how many steps older their policy was; empty where all were of this step's."""
    staleness: float
    """Mean of these steps."""
    max_staleness: int
    preference_score: float | None = None
    """Mean over the responses that a model scored, squashed between 0 and 1; None where none was."""
    safety_score: float | None = None
    """Likewise."""
    tools: ToolTally | None = None
    """How tools were used; None where no response called one."""
    mode_accuracy: dict[str, float] = field(default_factory=dict)
    """By task and how it was asked, as `id,thinking=on`; empty where all groups of a run think."""
    mode_tokens: dict[str, float] = field(default_factory=dict)
    """Mean length of responses, likewise."""


def progress(
    step: int,
    tasks: Sequence[Task],
    collected: Collected,
    updates: Sequence[UpdateMetrics],
    mismatch: Mismatch | None = None,
    *,
    by_mode: bool = False,
) -> RLProgress:
    """The report on what a step gathered and learned, `step` steps being done by now.

    by_mode: some groups of the run are asked without thinking.
    """
    groups = collected.whole
    flat = [r for group in groups for r in group]
    by_task = _by(flat, lambda one: one.problem.task)
    by_level = _by(
        flat, lambda one: one.problem.level and f"{one.problem.task},{one.problem.level}"
    )
    modes = _by(flat, asked_as) if by_mode else {}
    idle, ages = _idle_throughout(updates), _ages(collected)
    return RLProgress(
        step=step,
        tools=tally(calls) if any(calls := [r.parsed.calls for r in flat]) else None,
        preference_score=_mean(r.scores["preference"] for r in flat if "preference" in r.scores),
        safety_score=_mean(r.scores["safety"] for r in flat if "safety" in r.scores),
        reward=fmean(r.reward for r in flat),
        accuracy={t: fmean(r.correct for r in rs) for t, rs in by_task.items()},
        level_accuracy={t: fmean(r.correct for r in rs) for t, rs in by_level.items()},
        level_frac={t: len(rs) / len(by_task[rs[0].problem.task]) for t, rs in by_level.items()},
        mode_accuracy={m: fmean(r.correct for r in rs) for m, rs in modes.items()},
        mode_tokens={m: fmean(len(r.response) for r in rs) for m, rs in modes.items()},
        response_tokens={t: fmean(len(r.response) for r in rs) for t, rs in by_task.items()},
        self_check_frac=_self_check_frac(flat, tasks),
        truncated_frac=fmean(r.truncated for r in flat),
        looping_frac=fmean(ends_in_a_loop(r.response.token_ids) for r in flat),
        samples=len(flat),
        verifier_errors=sum(r.score.error is not None for r in flat),
        timeouts=sum(r.score.timed_out for r in flat),
        silent_groups=sum(is_silent(group) for group in groups),
        entropy=_mean(u.entropy for u in updates),
        clipped_frac=_mean(u.clipped_frac for u in updates),
        clipped_high_frac=_mean(u.clipped_high_frac for u in updates),
        clipped_low_frac=_mean(u.clipped_low_frac for u in updates),
        loss=_mean_terms(updates),
        reference_kl=_mean(u.kl for u in updates if u.kl is not None),
        teacher_kl=_mean(u.teacher_kl for u in updates if u.teacher_kl is not None),
        mean_weight=None if mismatch is None else mismatch.mean_weight,
        held_frac=None if mismatch is None else mismatch.held_frac,
        grad_norm=_mean(u.step.grad_norm for u in updates),
        max_load_frac=max((u.step.max_load_frac for u in updates), default=None),
        idle_experts=None if idle is None else len(idle),
        idle=idle,
        skipped_updates=sum(u.step.skipped for u in updates),
        first_log_ratio_rms=_first_log_ratio_rms(updates, mismatch),
        sampler_kl=None if mismatch is None else mismatch.kl,
        sampled_tokens=collected.sampled_tokens,
        prompt_tokens=sum(len(group[0].prompt_ids) for group in groups),
        trained_tokens=sum(u.tokens for u in updates),
        counted_tokens=sum(u.counted_tokens for u in updates),
        denominator=_mean(u.denominator for u in updates),
        share_sum=_mean(u.share_sum for u in updates),
        begun_groups=collected.num_begun,
        dropped_groups=len(collected.dropped),
        kept_groups=len(collected.groups),
        unfinished_groups=collected.num_unfinished,
        stale_frac=_shares(ages) if max(ages, default=0) else {},
        staleness=sum(age * frac for age, frac in _shares(ages).items()),
        max_staleness=max(ages, default=0),
    )


def asked_as(rollout: Rollout) -> str:
    """The task and whether it was asked to think, such as `countdown,thinking=off`."""
    return f"{rollout.problem.task},thinking={'on' if rollout.thinking else 'off'}"


def _by(
    flat: Iterable[Rollout], name_of: Callable[[Rollout], str | None]
) -> dict[str, list[Rollout]]:
    """Rollouts by what they are called; without those that are called nothing."""
    found: dict[str, list[Rollout]] = {}
    for rollout in flat:
        if name := name_of(rollout):
            found.setdefault(name, []).append(rollout)
    return found


def _self_check_frac(flat: Iterable[Rollout], tasks: Sequence[Task]) -> float | None:
    searches = {task.id for task in tasks if task.searches}
    thoughts = [r.parsed.thought for r in flat if r.thinking and r.problem.task in searches]
    return _mean(checks_itself(thought) for thought in thoughts)


def _mean_terms(updates: Sequence[UpdateMetrics]) -> dict[str, float]:
    names = updates[0].terms if updates else ()
    return {name: fmean(u.terms[name] for u in updates) for name in names}


def _shares(ages: Counter[int]) -> dict[int, float]:
    return {age: n / ages.total() for age, n in sorted(ages.items())}


def _ages(collected: Collected) -> Counter[int]:
    """How many of the drawn tokens to train on are how many versions old."""
    responses = [r.response for group in collected.groups for r in group]
    versions: Counter[int] = Counter()
    for response in responses:
        versions.update(compress(response.versions, response.drawn))
    return Counter({collected.version - version: n for version, n in versions.items()})


def _mean(values: Iterable[float]) -> float | None:
    """None where there are none."""
    found = list(values)
    return fmean(found) if found else None


def _first_log_ratio_rms(
    updates: Sequence[UpdateMetrics], mismatch: Mismatch | None
) -> float | None:
    """Against the sampler, also where the objective compares with the trainer's own log-probabilities."""
    if mismatch is not None:
        return mismatch.log_ratio_rms
    return updates[0].log_ratio_rms if updates else None


def _idle_throughout(updates: Sequence[UpdateMetrics]) -> tuple[tuple[int, int], ...] | None:
    """Experts that were idle in every update; None where there was none."""
    if not updates:
        return None
    return tuple(sorted(set.intersection(*(set(u.step.idle) for u in updates))))
