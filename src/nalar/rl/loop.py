"""The loop of RL: draw, sample, score, update; the engine reads the parameters that the update moves."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from nalar.data.tokenizer import Tokenizer
from nalar.engine.engine import Engine
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.optim.schedule import lr_factor
from nalar.rl.config import RLConfig
from nalar.rl.correction import Mismatch
from nalar.rl.reference import Reference
from nalar.rl.rollout import Rollout, collect, draw_problems
from nalar.rl.step import UpdateMetrics, teach, update
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
    response_tokens: dict[str, float]
    """Mean length by task id."""
    self_check_frac: float | None
    """Of the responses to tasks that search: a try marked wrong and another after it."""
    truncated_frac: float
    verifier_errors: int
    """Answers without a verdict, in this step."""
    timeouts: int
    """Answers whose check, or whose own program, ran over its time; in this step."""
    silent_groups: int
    """Groups whose rewards were all equal, and so taught nothing."""
    entropy: float | None
    clipped_frac: float | None
    clipped_high_frac: float | None
    """Of the tokens in the loss, those held back because their ratio is too high."""
    clipped_low_frac: float | None
    loss: dict[str, float]
    """Each term of it, weighted: policy, and kl and entropy where they are on. Means over the updates."""
    reference_kl: float | None
    """Of the policy from the reference, nats a token, by k3; where one is kept."""
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
    """Trainer against sampler before the first update of the step: rounding alone."""
    sampler_kl: float | None
    """Of the sampler from the trainer, nats a token, by k3, before the first update; where the correction looked."""
    sampled_tokens: int
    prompt_tokens: int
    trained_tokens: int
    counted_tokens: int
    """Those that the loss had in it: anything but `trained_tokens` is a wrong mask."""
    denominator: float | None
    """What the loss of an update is divided by; the mean over the updates."""
    share_sum: float | None
    """What all tokens of an update count together: 1 where the loss is a mean. The mean over the updates."""


def train_rl(
    model: Transformer,
    optimizer: MuonClip,
    engine: Engine,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    config: RLConfig,
    *,
    seed: int,
    first_step: int,
    on_step: Callable[[RLProgress, list[list[Rollout]]], None],
    should_stop: Callable[[], bool],
    reference: Reference | None = None,
) -> int:
    """Run steps first_step.. until config.steps or told to stop; returns steps done in all.

    reference: needed where `config.kl` has a coefficient; made of the model before step 0, or restored.
    """
    step = first_step
    engine.load(model.state_dict(), version=step)
    while step < config.steps and not should_stop():
        problems = draw_problems(tasks, config.prompts_per_step, seed, step)
        groups = collect(engine, tokenizer, tasks, problems, config, seed=seed * 100_003 + step)
        updates, mismatch = _updates(model, optimizer, groups, config, step, reference)
        step += 1
        engine.load(model.state_dict(), version=step)
        on_step(_progress(step, tasks, groups, updates, mismatch), groups)
    return step


def _updates(
    model: Transformer,
    optimizer: MuonClip,
    groups: list[list[Rollout]],
    config: RLConfig,
    step: int,
    reference: Reference | None,
) -> tuple[list[UpdateMetrics], Mismatch | None]:
    model.train()
    if reference is not None:
        reference.follow(model, step, config)
    shares, mismatch = teach(model, groups, config, reference)
    done = []
    for i, share in enumerate(shares):
        at, total = step * config.minibatches + i, config.steps * config.minibatches
        factor = lr_factor(config.schedule, at, total)
        metrics = update(model, optimizer, share, config, lr_factor=factor)
        if metrics is not None:
            done.append(metrics)
    return done, mismatch


def _progress(
    step: int,
    tasks: Sequence[Task],
    groups: list[list[Rollout]],
    updates: list[UpdateMetrics],
    mismatch: Mismatch | None,
) -> RLProgress:
    flat = [r for group in groups for r in group]
    by_task: dict[str, list[Rollout]] = {}
    for r in flat:
        by_task.setdefault(r.problem.task, []).append(r)
    searches = {task.id for task in tasks if task.searches}
    searching = [r for r in flat if r.problem.task in searches]
    idle = _idle_throughout(updates)
    return RLProgress(
        step=step,
        reward=fmean(r.reward for r in flat),
        accuracy={t: fmean(r.correct for r in rs) for t, rs in by_task.items()},
        response_tokens={t: fmean(len(r.response) for r in rs) for t, rs in by_task.items()},
        self_check_frac=(
            fmean(checks_itself(r.parsed.thought) for r in searching) if searching else None
        ),
        truncated_frac=fmean(r.truncated for r in flat),
        verifier_errors=sum(r.score.error is not None for r in flat),
        timeouts=sum(r.score.timed_out for r in flat),
        silent_groups=sum(len({r.reward for r in group}) == 1 for group in groups),
        entropy=_mean(u.entropy for u in updates),
        clipped_frac=_mean(u.clipped_frac for u in updates),
        clipped_high_frac=_mean(u.clipped_high_frac for u in updates),
        clipped_low_frac=_mean(u.clipped_low_frac for u in updates),
        loss={name: fmean(u.terms[name] for u in updates) for name in updates[0].terms}
        if updates
        else {},
        reference_kl=_mean(u.kl for u in updates if u.kl is not None),
        mean_weight=None if mismatch is None else mismatch.mean_weight,
        held_frac=None if mismatch is None else mismatch.held_frac,
        grad_norm=_mean(u.step.grad_norm for u in updates),
        max_load_frac=max((u.step.max_load_frac for u in updates), default=None),
        idle_experts=None if idle is None else len(idle),
        idle=idle,
        skipped_updates=sum(u.step.skipped for u in updates),
        first_log_ratio_rms=_first_log_ratio_rms(updates, mismatch),
        sampler_kl=None if mismatch is None else mismatch.kl,
        sampled_tokens=sum(r.response.num_drawn for r in flat),
        prompt_tokens=sum(len(group[0].prompt_ids) for group in groups),
        trained_tokens=sum(u.tokens for u in updates),
        counted_tokens=sum(u.counted_tokens for u in updates),
        denominator=_mean(u.denominator for u in updates),
        share_sum=_mean(u.share_sum for u in updates),
    )


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
