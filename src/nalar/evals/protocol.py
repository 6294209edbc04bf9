"""How a model is measured on a task: the same problems, k samples each, intervals over problems."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from nalar.data.dialogue import Parsed, encode_prompt, has_thought, parse
from nalar.data.tokenizer import Tokenizer
from nalar.data.tool_use import tally
from nalar.engine.engine import Engine
from nalar.engine.sequence import (
    BannedTokens,
    Completion,
    Request,
    SamplingParams,
    ThinkingParams,
)
from nalar.engine.turns import MakeEnvironment, generate_turns
from nalar.evals.config import EvalConfig
from nalar.evals.results import TaskResult, estimate
from nalar.stats import majority, pass_at_k
from nalar.tasks.language import is_readable, says_language
from nalar.tasks.problem import Problem, Score, Task, scored
from nalar.tasks.traces import checks_itself

_WORDED_FRAC = 0.1
"""Thoughts that have small words, at least, for a share of them to say something."""


@dataclass(frozen=True)
class Sample:
    """One measured response."""

    problem: Problem
    num_prompt_tokens: int
    completion: Completion
    parsed: Parsed
    score: Score
    thought_tokens: int = 0
    """Drawn within thoughts."""
    has_thought: bool = False

    @property
    def num_response_tokens(self) -> int:
        return len(self.completion.token_ids)

    @property
    def correct(self) -> bool:
        return self.score.correct and self.parsed.well_formed


@dataclass(frozen=True)
class Measured:
    """What an evaluation gives: the figures, and what they came from."""

    result: TaskResult
    samples: list[list[Sample]]
    """By problem."""


def thinking_params(tokenizer: Tokenizer, budget_tokens: int | None = None) -> ThinkingParams:
    """What a thought is in a tokenizer's ids, and how long it may be."""
    return ThinkingParams(
        start_id=tokenizer.think_id, end_id=tokenizer.end_think_id, budget_tokens=budget_tokens
    )


def sample_problems(
    engine: Engine,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    params: SamplingParams,
    banned_tokens: Sequence[BannedTokens | None] | None = None,
    make_environment: MakeEnvironment | None = None,
    *,
    thinking: bool = True,
) -> list[list[Sample]]:
    """`params.n` scored responses to each problem; each problem has a seed of its own, from its place.

    thinking: False: they are asked with the thought closed, and read so. A budget is among the params.
    make_environment: what each sample talks to where it stops, as in RL. None: a sample that stops is over.
    """
    requests = []
    for i, problem in enumerate(problems):
        own = {"stop_token_ids": tokenizer.stop_ids, "seed": params.seed * 1_000_003 + i}
        messages = [{"role": "user", "content": problem.prompt}]
        prompt_ids = encode_prompt(tokenizer, messages, thinking=thinking)
        banned = banned_tokens[i] if banned_tokens else None
        requests.append(Request(tuple(prompt_ids), params.model_copy(update=own), banned))
    if make_environment is None:
        groups = engine.generate(requests)
    else:
        make = make_environment
        groups = generate_turns(engine, requests, lambda i: make(problems[i]))
    return [
        [_read(tokenizer, task, problem, request, one, thinking=thinking) for one in completions]
        for request, problem, completions in zip(requests, problems, groups, strict=True)
    ]


def _read(
    tokenizer: Tokenizer,
    task: Task,
    problem: Problem,
    request: Request,
    completion: Completion,
    *,
    thinking: bool,
) -> Sample:
    ids = completion.token_ids
    parsed = parse(tokenizer, ids, thinking=thinking)
    marks = thinking_params(tokenizer)
    return Sample(
        problem,
        len(request.prompt_ids),
        completion,
        parsed,
        scored(task, problem, parsed.answer),
        thought_tokens=marks.count(request.prompt_ids, ids, completion.forced),
        has_thought=has_thought(tokenizer, ids, parsed, thinking=thinking),
    )


def evaluate(
    engine: Engine,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    config: EvalConfig,
    *,
    seed: int,
    make_environment: MakeEnvironment | None = None,
) -> Measured:
    """Sample and summarise."""
    budget = config.thinking_budget
    params = SamplingParams(
        n=config.k,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=seed,
        thinking=None if budget is None else thinking_params(tokenizer, budget),
    )
    samples = sample_problems(
        engine,
        tokenizer,
        task,
        problems,
        params,
        make_environment=make_environment,
        thinking=config.thinking == "on",
    )
    return Measured(summarise(samples, searches=task.searches, seed=seed), samples)


def summarise(samples: Sequence[Sequence[Sample]], *, searches: bool, seed: int) -> TaskResult:
    """The figures of a task from its samples, equally many for each problem."""
    k = len(samples[0])
    flat = [s for group in samples for s in group]
    correct = [sum(s.correct for s in group) for group in samples]
    tools = tally(s.parsed.calls for s in flat)
    return TaskResult(
        n=len(samples),
        k=k,
        pass_at_1=estimate([c / k for c in correct], seed=seed),
        pass_at_k=estimate([pass_at_k(k, c, k) for c in correct], seed=seed),
        maj_at_k=estimate([float(_majority_correct(group)) for group in samples], seed=seed),
        truncated_frac=fmean(s.completion.finish_reason == "length" for s in flat),
        well_formed_frac=fmean(s.parsed.well_formed and s.score.well_formed for s in flat),
        mean_response_tokens=fmean(len(s.completion.token_ids) for s in flat),
        self_check_frac=fmean(checks_itself(s.parsed.thought) for s in flat) if searches else None,
        readable_frac=readable_frac([s.parsed.thought for s in flat]),
        verifier_errors=sum(s.score.error is not None for s in flat),
        timeouts=sum(s.score.timed_out for s in flat),
        tool_calls=tools.calls,
        called_frac=tools.called_frac,
        tool_error_frac=tools.error_frac,
        mean_thought_tokens=fmean(s.thought_tokens for s in flat),
        longest_thought_tokens=max(s.thought_tokens for s in flat),
        thought_frac=fmean(s.has_thought for s in flat),
    )


def readable_frac(thoughts: Sequence[str]) -> float | None:
    """Of the thoughts with words to tell a language by, those that are readable; None where these are few."""
    worded = [thought for thought in thoughts if says_language(thought)]
    if not worded or len(worded) < _WORDED_FRAC * len(thoughts):
        return None
    return fmean(map(is_readable, worded))


def _majority_correct(group: Sequence[Sample]) -> bool:
    votes = [s.score.canonical if s.parsed.well_formed else None for s in group]
    correct = {vote: s.correct for vote, s in zip(votes, group, strict=True) if vote is not None}
    return majority(votes, correct)
