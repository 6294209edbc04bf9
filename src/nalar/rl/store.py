"""Rollouts as files, a step a file and a response a line; and training on what they hold. Imports no torch."""

import math
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nalar.config import UserError
from nalar.data.dialogue import parse
from nalar.data.tokenizer import Tokenizer
from nalar.disk import encode, read_lines, write_atomic
from nalar.engine.sequence import FinishReason
from nalar.rl.config import ScoredBy
from nalar.rl.response import Response
from nalar.rl.rollout import Collected, Rollout
from nalar.tasks.problem import Problem, Score

SCHEMA_VERSION = 1


class RolloutRow(BaseModel):
    """One response, as a line of `rollouts/step-NNNNNN.jsonl`. Only gains keys."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    schema_version: int = SCHEMA_VERSION
    step: int
    """Steps done with this one, as in the metrics."""
    version: int
    """Of the policy that the step trains."""
    group: int
    kept: bool
    """Whether the group was trained on; one of equal rewards may have been dropped for another."""
    problem: Problem
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    drawn: tuple[bool, ...]
    versions: tuple[int, ...]
    finish_reason: FinishReason
    score: Score
    parts: dict[str, float]
    reward: float
    thinking: bool = True
    """False: asked with the thought closed."""
    scores: dict[ScoredBy, float] = {}
    """Of models, from 0 to 1, before their weight."""

    def rollout(self, tokenizer: Tokenizer) -> Rollout:
        response = Response(
            self.token_ids, self.logprobs, self.drawn, self.versions, self.finish_reason
        )
        parsed = parse(tokenizer, self.token_ids, thinking=self.thinking)
        return Rollout(
            self.problem,
            self.prompt_ids,
            response,
            parsed,
            self.score,
            self.reward,
            self.parts,
            self.thinking,
            self.scores,
        )


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.jsonl"


def save_rollouts(folder: Path, step: int, collected: Collected) -> None:
    """Write the rollouts of a step, `step` steps being done with it."""
    lines = [
        encode(_row(rollout, step, collected.version, number, kept).model_dump(mode="json"))
        for number, (group, kept) in enumerate(
            [*((g, True) for g in collected.groups), *((g, False) for g in collected.dropped)]
        )
        for rollout in group
    ]
    write_atomic(path_of(folder, step), b"".join(line + b"\n" for line in lines))


def _row(rollout: Rollout, step: int, version: int, group: int, kept: bool) -> RolloutRow:
    response = rollout.response
    return RolloutRow(
        step=step,
        version=version,
        group=group,
        kept=kept,
        problem=rollout.problem,
        prompt_ids=rollout.prompt_ids,
        token_ids=response.token_ids,
        logprobs=response.logprobs,
        drawn=response.drawn,
        versions=response.versions,
        finish_reason=response.finish_reason,
        score=rollout.score,
        parts=dict(rollout.parts),
        reward=rollout.reward,
        thinking=rollout.thinking,
        scores=dict(rollout.scores),
    )


def read_rows(path: Path) -> list[RolloutRow]:
    """The responses of a step, group by group; UserError where the file is not one of rollouts."""
    records = read_lines(path)
    if not records:
        raise UserError(
            at=str(path), got="no rollouts", want="a file that rl.rollout.save_every_steps wrote"
        )
    return [_checked(record, f"{path}, line {i}") for i, record in enumerate(records, start=1)]


def _checked(record: Mapping[str, Any], at: str) -> RolloutRow:
    version = record.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(
            at=at,
            got=f"a rollout of schema version {version}",
            want=f"version {SCHEMA_VERSION} or older",
            hint="read it with the nalar that wrote it, or a newer one",
        )
    try:
        row = RolloutRow.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            at=at, got=f"{first['msg'].lower()} at {place}", want="a line as nalar wrote it"
        ) from error
    if not len(row.token_ids) == len(row.logprobs) == len(row.drawn) == len(row.versions):
        raise UserError(
            at=at,
            got="lists of different lengths",
            want="token_ids, logprobs, drawn and versions of one length",
        )
    return row


def load_rollouts(path: Path, tokenizer: Tokenizer) -> Collected:
    """A step as it was saved. Nothing of it is sampled now. UserError where nobody can train on it."""
    rows = read_rows(path)
    for i, row in enumerate(rows, start=1):
        if objection := _objection(row, tokenizer.vocab_size):
            raise UserError(
                at=f"{path}, line {i}", got=objection, want="a rollout of this model's tokenizer"
            )
    groups: dict[bool, list[list[Rollout]]] = {True: [], False: []}
    for (_, kept), own in groupby(rows, key=lambda row: (row.group, row.kept)):
        groups[kept].append([row.rollout(tokenizer) for row in own])
    return Collected(rows[0].version, groups[True], groups[False])


def _objection(row: RolloutRow, vocab_size: int) -> str | None:
    """What would train on nothing, on noise, or beyond the embedding."""
    if not row.prompt_ids:
        return "an empty prompt"
    outside = [i for i in (*row.prompt_ids, *row.token_ids) if not 0 <= i < vocab_size]
    if outside:
        return f"the id {outside[0]!s:.20} with a vocabulary of {vocab_size}"
    numbers = {"reward": (row.reward,), "logprobs": row.logprobs}
    strange = [name for name, of in numbers.items() if not all(map(math.isfinite, of))]
    return f"a number that is not finite in {strange[0]}" if strange else None


class Replay:
    """Saved steps in the place of sampled ones: the n-th file is step n, whatever its own number."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, steps: int) -> None:
        """UserError where there are fewer files than steps."""
        self._tokenizer, self._files = tokenizer, sorted(folder.glob("step-*.jsonl"))
        if len(self._files) < steps:
            raise UserError(
                at=str(folder),
                got=f"{len(self._files)} files of rollouts for rl.steps={steps}",
                want="one for each step",
                hint="fewer steps, or a folder of rollouts saved with --rl.rollout.save-every-steps 1",
            )

    def load(self, params: object, version: int) -> None:
        """Nobody samples."""

    def collect(self, number: int) -> Collected:
        return load_rollouts(self._files[number], self._tokenizer)
