"""The judgements of a reward run: read or drawn, encoded, split, and on record so that a run goes on with the same."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nalar.config import UserError
from nalar.data.loader import SourceRecord
from nalar.data.preference_draws import RatedTask, draw_labels, draw_pairs, rated
from nalar.data.preferences import (
    Answer,
    Judgement,
    balanced,
    held_out,
    read_judgements,
    scored_ids,
)
from nalar.data.tokenizer import Tokenizer
from nalar.pipeline.config import RewardRunConfig
from nalar.rl.reward_step import Example
from nalar.tasks.problem import Split
from nalar.tasks.registry import open_task


@dataclass(frozen=True)
class Encoded:
    """A judgement as its model reads it."""

    judgement: Judgement
    example: Example
    prompt_tokens: int


@dataclass(frozen=True)
class Judgements:
    """What is trained on, and what is tested on."""

    trained: list[Encoded]
    tested: list[Encoded]
    record: SourceRecord

    @property
    def lines(self) -> list[str]:
        """What a user should know of them."""
        record = self.record
        text = f"{record.source}: {len(self.trained):,} judgements to train on, {len(self.tested):,} to test on"
        if record.left_out:
            text += f"; {record.left_out:,} left out: too long, or for the balance of lengths"
        sides = [
            (one.example.better, one.example.worse)
            for one in self.trained
            if one.example.better and one.example.worse
        ]
        if not sides:
            return [text]
        better, worse = (sum(map(len, side)) / len(sides) for side in zip(*sides, strict=True))
        return [text, f"mean length with the prompt: better {better:.1f} tokens, worse {worse:.1f}"]


def load_judgements(config: RewardRunConfig, tokenizer: Tokenizer) -> Judgements:
    """UserError where a file or a task is not what it should be, or nothing is left."""
    if config.is_procedural:
        trained, tested = _drawn(config)
    else:
        trained, tested = _of_file(config)
    found = len(trained) + len(tested)
    kept, held = (_encoded(ones, tokenizer, config) for ones in (trained, tested))
    if config.balance_lengths and not config.is_procedural:
        kept = _balanced(kept, config)
    if config.wanted is not None and len(kept) > config.wanted:
        random.Random(f"{config.seed} {config.data}").shuffle(kept)
        kept = kept[: config.wanted]
    for name, ones in (("train on", kept), ("test on", held)):
        if not ones:
            raise UserError(
                at=config.data,
                got=f"{found} judgements, of which none is left to {name}",
                want=f"some of at most max_tokens={config.max_tokens} on either side",
                hint="more judgements, a larger --max-tokens or another --held-out-frac",
            )
    return Judgements(kept, held, _record(config, tokenizer, found, kept, held))


def _drawn(config: RewardRunConfig) -> tuple[list[Judgement], list[Judgement]]:
    tasks = [rated(open_task(word, at="tasks"), at=f"tasks {word!r}") for word in config.task_words]
    count = config.wanted or 0
    held = max(1, round(count * config.held_out_frac))
    return _draw(config, tasks, count, "train"), _draw(config, tasks, held, "test")


def _draw(
    config: RewardRunConfig, tasks: Sequence[RatedTask], count: int, split: Split
) -> list[Judgement]:
    make = draw_pairs if config.kind == "preference" else draw_labels
    return make(tasks, count, split=split, seed=config.seed, min_gap=config.min_gap)


def _of_file(config: RewardRunConfig) -> tuple[list[Judgement], list[Judgement]]:
    every = read_judgements(Path(config.data).expanduser(), config.kind)
    sides: dict[bool, list[Judgement]] = {False: [], True: []}
    for one in every:
        sides[held_out(one, config.seed, config.held_out_frac)].append(one)
    return sides[False], sides[True]


def _encoded(
    judgements: Sequence[Judgement], tokenizer: Tokenizer, config: RewardRunConfig
) -> list[Encoded]:
    """Those that are not too long."""

    def ids(one: Judgement, answer: Answer | None) -> tuple[int, ...] | None:
        if answer is None:
            return None
        return tuple(scored_ids(tokenizer, one.messages, answer, config.kind))

    found = []
    for one in judgements:
        example = Example(ids(one, one.better), ids(one, one.worse), one.better_first)
        if max(example.lengths) <= config.max_tokens:
            prompt = len(scored_ids(tokenizer, one.messages, Answer(""), config.kind))
            found.append(Encoded(one, example, prompt))
    return found


def _balanced(encoded: list[Encoded], config: RewardRunConfig) -> list[Encoded]:
    """UserError where more than half would have to go: then length is what such pairs teach."""
    sizes = {
        i: (len(one.example.better), len(one.example.worse))
        for i, one in enumerate(encoded)
        if one.example.better and one.example.worse
    }
    dropped = balanced(sizes)
    kept = [one for i, one in enumerate(encoded) if i not in dropped]
    if len(kept) * 2 < len(encoded):
        longer = sum(better > worse for better, worse in sizes.values())
        raise UserError(
            at=config.data,
            got=f"{len(sizes)} pairs, of which {longer} have the longer side chosen",
            want="pairs of which about as much is longer on either side: a model learns length otherwise",
            hint="other pairs, or --no-balance-lengths",
        )
    return kept


def _record(
    config: RewardRunConfig,
    tokenizer: Tokenizer,
    found: int,
    kept: Sequence[Encoded],
    held: Sequence[Encoded],
) -> SourceRecord:
    digest, tokens = hashlib.sha256(), 0
    for one in (*kept, *held):
        tokens += one.example.tokens
        digest.update(json.dumps(one.example.sides).encode())
    return SourceRecord(
        source=config.data,
        weight_frac=1.0,
        records=found,
        documents=len(kept) + len(held),
        tokens=tokens,
        skipped={},
        left_out=found - len(kept) - len(held),
        held_out=len(held),
        digest=digest.hexdigest(),
        tokenizer=tokenizer.fingerprint,
        cache="",
    )
