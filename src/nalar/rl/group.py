"""Groups under way: what is drawn of each sample so far. Imports no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nalar.config import UserError
from nalar.data.dialogue import parse
from nalar.data.tokenizer import Tokenizer
from nalar.rl.curriculum import State
from nalar.rl.response import Response
from nalar.rl.rollout import Judged
from nalar.tasks.problem import Problem, Score


@dataclass(eq=False)
class Group:
    """The samples of one problem."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    seed: int
    """Sample i draws from its stream i, whichever policies it is drawn by."""
    responses: list[Response]
    judged: list[Judged | None]
    """Of each whole response the verdict."""
    step: int = 0
    """In which it was begun."""
    again: int = 0
    """How many rounds of refills this step had had by then."""
    slot: int = 0
    """Its place in the step, whose task it has."""
    thinking: bool = True
    """False: asked with the thought closed, and read so."""

    @property
    def is_whole(self) -> bool:
        return all(response.is_whole for response in self.responses)

    def open_runs(self) -> Iterator[range]:
        """Samples that are not whole: neighbours of which nothing is drawn yet together, others one by one."""
        run = range(0)
        for i, response in enumerate(self.responses):
            if response.is_whole:
                continue
            joins = bool(run) and run.stop == i and not self.responses[run.start].token_ids
            if joins and not response.token_ids:
                run = range(run.start, i + 1)
                continue
            if run:
                yield run
            run = range(i, i + 1)
        if run:
            yield run


class _Saved(BaseModel):
    """A group as JSON."""

    model_config = ConfigDict(extra="ignore")

    problem: Problem
    prompt_ids: tuple[int, ...]
    seed: int
    step: int
    again: int
    slot: int
    thinking: bool = True
    responses: list[Response]
    scores: list[Score | None]
    by_judge: list[float | None]


_SAME = ("problem", "prompt_ids", "seed", "step", "again", "slot", "thinking", "responses")


class _Document(BaseModel):
    unfinished: list[_Saved]
    levels: dict[str, State] = {}


@dataclass
class Carried:
    """What a step leaves to the next one: all that the loop remembers beside weights and optimizer."""

    unfinished: list[Group] = field(default_factory=list)
    levels: dict[str, State] = field(default_factory=dict)
    """By task, how often its levels were solved; of tasks that have a curriculum."""

    def to_json(self) -> dict[str, Any]:
        saved = [
            _Saved(
                **{name: getattr(group, name) for name in _Saved.model_fields if name in _SAME},
                scores=[one.score if one else None for one in group.judged],
                by_judge=[one.by_judge if one else None for one in group.judged],
            )
            for group in self.unfinished
        ]
        return _Document(unfinished=saved, levels=self.levels).model_dump(mode="json")

    @classmethod
    def from_json(cls, document: Mapping[str, Any], tokenizer: Tokenizer) -> "Carried":
        """UserError where it is not what `to_json` gave."""
        try:
            saved = _Document.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                at="what a checkpoint of RL remembers",
                got=f"{first['msg'].lower()} at {'.'.join(map(str, first['loc']))}",
                want="what nalar wrote",
            ) from error
        for i, one in enumerate(saved.unfinished):
            if objection := _objection(one, tokenizer.vocab_size):
                raise UserError(
                    at=f"unfinished rollouts of a checkpoint, group {i}",
                    got=objection,
                    want="what nalar wrote",
                )
        return cls([_opened(one, tokenizer) for one in saved.unfinished], saved.levels)


def _objection(saved: _Saved, vocab_size: int) -> str | None:
    """What does not fit together, or not to this tokenizer."""
    responses = saved.responses
    if not len(responses) == len(saved.scores) == len(saved.by_judge):
        return "not one score for each response"
    for one in responses:
        if not len(one.token_ids) == len(one.logprobs) == len(one.drawn) == len(one.versions):
            return "a response whose lists differ in length"
    if any(
        one.is_whole and score is None for one, score in zip(responses, saved.scores, strict=True)
    ):
        return "a whole response without a score"
    ids = chain(saved.prompt_ids, *(one.token_ids for one in responses))
    if not saved.prompt_ids or any(not 0 <= i < vocab_size for i in ids):
        return f"an empty prompt, or an id that is none of {vocab_size}"
    return None


def _opened(saved: _Saved, tokenizer: Tokenizer) -> Group:
    fields = {name: getattr(saved, name) for name in _Saved.model_fields if name in _SAME}
    verdicts = [
        None
        if score is None
        else Judged(parse(tokenizer, response.token_ids, thinking=saved.thinking), score, by_judge)
        for response, score, by_judge in zip(
            saved.responses, saved.scores, saved.by_judge, strict=True
        )
    ]
    return Group(**fields, judged=verdicts)
