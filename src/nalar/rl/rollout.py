"""Problems go in, scored samples come out."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from nalar.data.dialogue import Parsed, encode_prompt, parse
from nalar.data.tokenizer import Tokenizer
from nalar.engine.engine import Engine
from nalar.engine.sequence import Completion, Request, SamplingParams
from nalar.rl.config import RewardConfig, RLConfig
from nalar.tasks.problem import Problem, Score, Task


@dataclass(frozen=True)
class Rollout:
    """One response to one problem, with the ids as sampled: nothing is tokenised twice."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    completion: Completion
    parsed: Parsed
    score: Score
    reward: float

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def correct(self) -> bool:
        return self.score.correct and self.parsed.well_formed

    @property
    def truncated(self) -> bool:
        return self.completion.finish_reason == "length"


def draw_problems(tasks: Sequence[Task], count: int, seed: int, step: int) -> list[Problem]:
    """Train problems of one step, the tasks in turn; a pure function of seed and step."""
    rng = random.Random(f"{seed}/rl/{step}")
    return [tasks[i % len(tasks)].draw(rng, "train") for i in range(count)]


def reward_of(score: Score, well_formed: bool, config: RewardConfig) -> float:
    earned = config.well_formed if well_formed and score.well_formed else 0.0
    return earned + (config.correct if score.correct and well_formed else 0.0)


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
    return [
        [
            _scored(
                tokenizer,
                by_id[problem.task],
                problem,
                request.prompt_ids,
                completion,
                config.reward,
            )
            for completion in completions
        ]
        for problem, request, completions in zip(
            problems, requests, engine.generate(requests), strict=True
        )
    ]


def _scored(
    tokenizer: Tokenizer,
    task: Task,
    problem: Problem,
    prompt_ids: tuple[int, ...],
    completion: Completion,
    reward: RewardConfig,
) -> Rollout:
    parsed = parse(tokenizer, completion.token_ids)
    score = task.score(problem, parsed.answer)
    earned = reward_of(score, parsed.well_formed, reward)
    return Rollout(problem, prompt_ids, completion, parsed, score, earned)
