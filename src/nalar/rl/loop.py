"""The loop of RL: draw, sample, score, update; the engine reads the parameters that the update moves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from nalar.data.tokenizer import Tokenizer
from nalar.data.tool_use import ToolTally, tally
from nalar.engine.engine import Engine
from nalar.engine.turns import Environment
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.optim.schedule import lr_factor
from nalar.rl.config import RLConfig
from nalar.rl.rollout import Rollout, collect, draw_problems
from nalar.rl.step import UpdateMetrics, update
from nalar.tasks.problem import Problem, Task
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
    sampled_tokens: int
    prompt_tokens: int
    trained_tokens: int
    tools: ToolTally | None = None
    """How tools were used; None where no response called one."""


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
    make_environment: Callable[[Problem], Environment] | None = None,
) -> int:
    """Run steps first_step.. until config.steps or told to stop; returns steps done in all."""
    step = first_step
    engine.load(model.state_dict(), version=step)
    while step < config.steps and not should_stop():
        problems = draw_problems(tasks, config.prompts_per_step, seed, step)
        groups = collect(
            engine,
            tokenizer,
            tasks,
            problems,
            config,
            seed=seed * 100_003 + step,
            make_environment=make_environment,
        )
        updates = _updates(model, optimizer, groups, config, step)
        step += 1
        engine.load(model.state_dict(), version=step)
        on_step(_progress(step, tasks, groups, updates), groups)
    return step


def _updates(
    model: Transformer,
    optimizer: MuonClip,
    groups: list[list[Rollout]],
    config: RLConfig,
    step: int,
) -> list[UpdateMetrics]:
    model.train()
    done = []
    for i in range(config.minibatches):
        size = len(groups) // config.minibatches
        share = groups[i * size : (i + 1) * size]
        at, total = step * config.minibatches + i, config.steps * config.minibatches
        factor = lr_factor(config.schedule, at, total)
        metrics = update(model, optimizer, share, config, lr_factor=factor)
        if metrics is not None:
            done.append(metrics)
    return done


def _progress(
    step: int, tasks: Sequence[Task], groups: list[list[Rollout]], updates: list[UpdateMetrics]
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
        entropy=fmean(u.entropy for u in updates) if updates else None,
        clipped_frac=fmean(u.clipped_frac for u in updates) if updates else None,
        grad_norm=fmean(u.step.grad_norm for u in updates) if updates else None,
        max_load_frac=max((u.step.max_load_frac for u in updates), default=None),
        idle_experts=None if idle is None else len(idle),
        idle=idle,
        skipped_updates=sum(u.step.skipped for u in updates),
        first_log_ratio_rms=updates[0].log_ratio_rms if updates else None,
        sampled_tokens=sum(r.response.num_drawn for r in flat),
        prompt_tokens=sum(len(group[0].prompt_ids) for group in groups),
        trained_tokens=sum(u.tokens for u in updates),
        tools=tally(calls) if any(calls := [r.parsed.calls for r in flat]) else None,
    )


def _idle_throughout(updates: Sequence[UpdateMetrics]) -> tuple[tuple[int, int], ...] | None:
    """Experts that were idle in every update; None where there was none."""
    if not updates:
        return None
    return tuple(sorted(set.intersection(*(set(u.step.idle) for u in updates))))
