"""What a step of RL is made of: problems, and responses to them, scored beside each other. Imports no torch."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nalar.data.dialogue import Parsed, parse
from nalar.data.tokenizer import Tokenizer
from nalar.rl.config import RewardConfig, RLConfig, ScoredBy
from nalar.rl.judge import Case
from nalar.rl.response import Response
from nalar.rl.rewards import Facts, group_rewards, totals, with_verdicts
from nalar.tasks.problem import Problem, Score, Split, Task, scored


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
    thinking: bool = True
    """False: asked with the thought closed."""
    scores: Mapping[ScoredBy, float] = field(default_factory=dict)
    """What models gave, from 0 to 1; empty where none was asked."""

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


@dataclass(frozen=True)
class Collected:
    """The groups that became whole in a step, and what became of the others."""

    version: int
    """Of the policy that this step trains."""
    groups: list[list[Rollout]]
    """To train on, those begun first in front."""
    dropped: list[list[Rollout]] = field(default_factory=list)
    """Of equal rewards each, and replaced as long as there were refills."""
    num_begun: int = 0
    num_unfinished: int = 0
    """Groups that wait for the next step."""
    sampled_tokens: int = 0
    """Drawn in this step, unfinished samples included."""

    @property
    def whole(self) -> list[list[Rollout]]:
        return [*self.groups, *self.dropped]


@dataclass(frozen=True)
class Judged:
    """A response as it was read and checked."""

    parsed: Parsed
    score: Score
    by_judge: float | None = None
    """The verdict of a model that judges, from 0 to 1. None: it was not asked."""


class Draws(Protocol):
    """A task, or whoever chooses among its levels."""

    def draw(self, rng: random.Random, split: Split) -> Problem: ...


def draw_problems(
    tasks: Sequence[Draws], count: int, seed: int, step: int, again: int = 0
) -> list[Problem]:
    """Train problems of one step, the tasks in turn; of tasks a pure function of seed, step and how often it was drawn
    again."""
    rng = random.Random(f"{seed}/rl/{step}" + (f"/{again}" if again else ""))
    return [tasks[i % len(tasks)].draw(rng, "train") for i in range(count)]


def judge_response(
    tokenizer: Tokenizer,
    task: Task,
    problem: Problem,
    response: Response,
    config: RewardConfig,
    *,
    thinking: bool = True,
) -> Judged:
    """Read a response and check its answer; a model that judges is asked last."""
    parsed = parse(tokenizer, response.token_ids, thinking=thinking)
    score = scored(task, problem, parsed.answer)
    if not config.weights_of(problem.task).judge:
        return Judged(parsed, score)
    case = Case(problem.prompt, parsed.answer, task.gold(problem))
    [facts] = with_verdicts([Facts(problem.task, score, parsed.well_formed, case=case)], config)
    return Judged(parsed, facts.score, facts.judged)


def rewarded(
    problem: Problem,
    prompt_ids: tuple[int, ...],
    responses: Sequence[Response],
    verdicts: Sequence[Judged],
    config: RLConfig,
    scores: Sequence[Mapping[ScoredBy, float]] | None = None,
    *,
    thinking: bool = True,
) -> list[Rollout]:
    """The responses to one problem, beside each other, all asked alike. scores: of models that score; None: they have
    no say."""
    scored: Sequence[Mapping[ScoredBy, float] | None]
    scored = [None] * len(responses) if scores is None else scores
    facts = [
        Facts(
            task=problem.task,
            score=one.score,
            is_whole=one.parsed.well_formed,
            # Without a thought the language is that of what is said.
            thought=one.parsed.thought if thinking else one.parsed.answer,
            num_tokens=len(response),
            max_tokens=config.max_tokens,
            judged=one.by_judge,
            scores=given,
        )
        for one, response, given in zip(verdicts, responses, scored, strict=True)
    ]
    parts = group_rewards(facts, config.reward)
    return [
        Rollout(
            problem,
            prompt_ids,
            response,
            one.parsed,
            one.score,
            reward,
            part or {},
            thinking=thinking,
            scores=given or {},
        )
        for response, one, reward, part, given in zip(
            responses, verdicts, totals(parts), parts, scored, strict=True
        )
    ]


def is_silent(group: Sequence[Rollout]) -> bool:
    """Whether all rewards are equal, so that nothing can be learned from it."""
    return len({rollout.reward for rollout in group}) == 1
