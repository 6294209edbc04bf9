"""Problems go in, scored samples come out."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from nalar.data.dialogue import Parsed, encode_prompt, parse
from nalar.data.tokenizer import Tokenizer
from nalar.engine.engine import Engine
from nalar.engine.sequence import Completion, Request, SamplingParams
from nalar.rl.config import RLConfig
from nalar.rl.judge import Case
from nalar.rl.response import Response
from nalar.rl.rewards import Facts, group_rewards, judged, totals
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
) -> list[list[Rollout]]:
    """A group of `config.group_size` scored samples for each problem."""
    by_id = {task.id: task for task in tasks}
    requests = []
    for i, problem in enumerate(problems):
        prompt_ids = tuple(encode_prompt(tokenizer, [{"role": "user", "content": problem.prompt}]))
        params = SamplingParams(
            n=config.group_size,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            stop_token_ids=(tokenizer.end_id,),
            seed=seed * 1_000_003 + i,
        )
        requests.append(Request(prompt_ids, params))
    sampled = engine.generate(requests)
    parsed = [[parse(tokenizer, one.token_ids) for one in group] for group in sampled]
    facts = [
        fact
        for problem, completions, ones in zip(problems, sampled, parsed, strict=True)
        for fact in _facts(by_id[problem.task], problem, completions, ones, config)
    ]
    told = iter(judged(facts, config.reward))
    return [
        _rewarded(
            problem, request.prompt_ids, completions, ones, list(islice(told, len(ones))), config
        )
        for problem, request, completions, ones in zip(
            problems, requests, sampled, parsed, strict=True
        )
    ]


def _facts(
    task: Task,
    problem: Problem,
    completions: Sequence[Completion],
    parsed: Sequence[Parsed],
    config: RLConfig,
) -> list[Facts]:
    """The responses to one problem, checked."""
    is_judged = config.reward.weights_of(problem.task).judge > 0
    gold = task.gold(problem) if is_judged else None
    return [
        Facts(
            task=problem.task,
            score=task.score(problem, one.answer),
            is_whole=one.well_formed,
            thought=one.thought,
            num_tokens=len(completion.token_ids),
            max_tokens=config.max_tokens,
            case=Case(problem.prompt, one.answer, gold) if is_judged else None,
        )
        for one, completion in zip(parsed, completions, strict=True)
    ]


def _rewarded(
    problem: Problem,
    prompt_ids: tuple[int, ...],
    completions: Sequence[Completion],
    parsed: Sequence[Parsed],
    facts: Sequence[Facts],
    config: RLConfig,
) -> list[Rollout]:
    """The responses to one problem, rewarded beside each other."""
    parts = group_rewards(facts, config.reward)
    return [
        Rollout(problem, prompt_ids, Response.of(completion), one, fact.score, reward, part or {})
        for completion, one, fact, reward, part in zip(
            completions, parsed, facts, totals(parts), parts, strict=True
        )
    ]
