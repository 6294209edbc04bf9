"""How a model is measured on a task: the same problems, k samples each, intervals over problems."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pydantic import BaseModel

from nalar.data.dialogue import Message, Parsed, encode_prompt, parse
from nalar.data.tokenizer import Tokenizer
from nalar.engine.engine import Engine
from nalar.engine.sequence import BannedTokens, Completion, Request, SamplingParams
from nalar.evals.config import EvalConfig
from nalar.stats import bootstrap_ci, majority, pass_at_k
from nalar.tasks.problem import Problem, Score, Task
from nalar.tasks.traces import checks_itself


class Estimate(BaseModel):
    """A mean and its 95% interval by bootstrap over problems."""

    mean: float
    ci95: tuple[float, float]


class TaskResult(BaseModel):
    """One task. Shares lie in [0, 1]."""

    n: int
    """Problems."""
    k: int
    pass_at_1: Estimate
    pass_at_k: Estimate
    maj_at_k: Estimate
    truncated_frac: float
    well_formed_frac: float
    mean_response_tokens: float
    self_check_frac: float | None
    """Share of responses in which a try marked wrong is followed by another; None where nothing is searched."""
    verifier_errors: int = 0


@dataclass(frozen=True)
class Sample:
    """One measured response."""

    problem: Problem
    completion: Completion
    parsed: Parsed
    score: Score

    @property
    def correct(self) -> bool:
        return self.score.correct and self.parsed.well_formed


@dataclass(frozen=True)
class Measured:
    result: TaskResult
    samples: list[list[Sample]]
    """By problem."""
    prompt_tokens: int
    sampled_tokens: int


def sample_problems(
    engine: Engine,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    params: SamplingParams,
    banned_tokens: Sequence[BannedTokens | None] | None = None,
) -> list[list[Sample]]:
    """`params.n` scored responses to each problem; each problem has a seed of its own, from its place."""
    stop = (tokenizer.end_id,)
    requests = [
        Request(
            tuple(encode_prompt(tokenizer, [Message(role="user", content=problem.prompt)])),
            params.model_copy(
                update={"stop_token_ids": stop, "seed": params.seed * 1_000_003 + i}
            ),
            banned_tokens[i] if banned_tokens else None,
        )
        for i, problem in enumerate(problems)
    ]
    out = []
    for problem, completions in zip(problems, engine.generate(requests), strict=True):
        parsed = [parse(tokenizer, c.token_ids) for c in completions]
        out.append(
            [
                Sample(problem, c, p, task.score(problem, p.answer))
                for c, p in zip(completions, parsed, strict=True)
            ]
        )
    return out


def evaluate(
    engine: Engine,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    config: EvalConfig,
    *,
    seed: int,
) -> Measured:
    """Sample and summarise."""
    params = SamplingParams(
        n=config.k, max_tokens=config.max_tokens, temperature=config.temperature, seed=seed
    )
    samples = sample_problems(engine, tokenizer, task, problems, params)
    prompt_tokens = sum(
        len(encode_prompt(tokenizer, [Message(role="user", content=p.prompt)])) for p in problems
    )
    sampled = sum(len(s.completion.token_ids) for group in samples for s in group)
    return Measured(summarise(samples, seed=seed), samples, prompt_tokens, sampled)


def summarise(samples: Sequence[Sequence[Sample]], *, seed: int) -> TaskResult:
    """The figures of a task from its samples, equally many for each problem."""
    k = len(samples[0])
    flat = [s for group in samples for s in group]
    searches = samples[0][0].problem.task == "countdown"
    correct = [sum(s.correct for s in group) for group in samples]
    return TaskResult(
        n=len(samples),
        k=k,
        pass_at_1=_estimate([c / k for c in correct], seed),
        pass_at_k=_estimate([pass_at_k(k, c, k) for c in correct], seed),
        maj_at_k=_estimate([float(_majority_correct(group)) for group in samples], seed),
        truncated_frac=fmean(s.completion.finish_reason == "length" for s in flat),
        well_formed_frac=fmean(s.parsed.well_formed and s.score.well_formed for s in flat),
        mean_response_tokens=fmean(len(s.completion.token_ids) for s in flat),
        self_check_frac=fmean(checks_itself(s.parsed.thought) for s in flat) if searches else None,
        verifier_errors=sum(s.score.error is not None for s in flat),
    )


def _majority_correct(group: Sequence[Sample]) -> bool:
    winner = majority([s.score.canonical if s.parsed.well_formed else None for s in group])
    return winner is not None and any(
        s.correct for s in group if s.score.canonical == winner
    )


def _estimate(values: Sequence[float], seed: int) -> Estimate:
    interval = bootstrap_ci(values, seed=seed)
    return Estimate(mean=interval.mean, ci95=(interval.lo, interval.hi))
