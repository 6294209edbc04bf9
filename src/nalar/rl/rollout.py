"""Problems go in, scored samples come out."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nalar.data.dialogue import Parsed, encode_prompt, parse
from nalar.data.tokenizer import Tokenizer
from nalar.engine.engine import Engine
from nalar.engine.sequence import Completion, Request, SamplingParams
from nalar.engine.turns import Environment, generate_turns
from nalar.rl.config import RLConfig
from nalar.rl.response import Response
from nalar.rl.rewards import Facts, group_rewards, totals
from nalar.tasks.problem import Problem, Score, Task


@dataclass(frozen=True)
class Rollout:
    """One response to one problem, with the ids as sampled: nothing is tokenised twice."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    response: Response
    parsed: Parsed
    score: Score
    reward: float
    """The sum of its parts; where the verifier failed, the mean of the group's others."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What each part earned, weighted; empty where the verifier failed."""

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def num_response_tokens(self) -> int:
        return len(self.response)

    @property
    def correct(self) -> bool:
        return self.score.correct and self.parsed.well_formed

    @property
    def truncated(self) -> bool:
        return self.response.finish_reason == "length"


def draw_problems(tasks: Sequence[Task], count: int, seed: int, step: int) -> list[Problem]:
    """Train problems of one step, the tasks in turn; a pure function of seed and step."""
    rng = random.Random(f"{seed}/rl/{step}")
    return [tasks[i % len(tasks)].draw(rng, "train") for i in range(count)]


def collect(
    engine: Engine,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    problems: Sequence[Problem],
    config: RLConfig,
    *,
    seed: int,
    make_environment: Callable[[Problem], Environment] | None = None,
) -> list[list[Rollout]]:
    """A group of `config.group_size` scored samples for each problem.

    make_environment: what each sample talks to where it stops, such as tools. None: a sample that stops is over.
    """
    by_id = {task.id: task for task in tasks}
    requests = []
    for i, problem in enumerate(problems):
        prompt_ids = tuple(encode_prompt(tokenizer, [{"role": "user", "content": problem.prompt}]))
        params = SamplingParams(
            n=config.group_size,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            stop_token_ids=tokenizer.stop_ids,
            seed=seed * 1_000_003 + i,
        )
        requests.append(Request(prompt_ids, params))
    if make_environment is None:
        groups = engine.generate(requests)
    else:
        make = make_environment
        groups = generate_turns(engine, requests, lambda i: make(problems[i]))
    return [
        _scored(tokenizer, by_id[problem.task], problem, request.prompt_ids, completions, config)
        for problem, request, completions in zip(problems, requests, groups, strict=True)
    ]


def _scored(
    tokenizer: Tokenizer,
    task: Task,
    problem: Problem,
    prompt_ids: tuple[int, ...],
    completions: Sequence[Completion],
    config: RLConfig,
) -> list[Rollout]:
    """The responses to one problem, parsed, checked and rewarded beside each other."""
    parsed = [parse(tokenizer, completion.token_ids) for completion in completions]
    facts = [
        Facts(
            task=problem.task,
            score=task.score(problem, one.answer),
            is_whole=one.well_formed,
            thought=one.thought,
            num_tokens=len(completion.token_ids),
            max_tokens=config.max_tokens,
        )
        for one, completion in zip(parsed, completions, strict=True)
    ]
    parts = group_rewards(facts, config.reward)
    return [
        Rollout(problem, prompt_ids, Response.of(completion), one, fact.score, reward, part or {})
        for completion, one, fact, reward, part in zip(
            completions, parsed, facts, totals(parts), parts, strict=True
        )
    ]
