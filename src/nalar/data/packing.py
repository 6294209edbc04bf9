"""Batches of whole documents: a pure function of (seed, step), so resuming needs the step number and nothing else."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nalar.data.config import CorpusConfig, PackingConfig
from nalar.data.corpora.procedural import documents
from nalar.data.tokenizer import Tokenizer, ToolIds

Ids = Sequence[int] | npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]
Take = Callable[[int, int], Sequence[Ids]]
"""Documents by step and room."""
IdsOf = TypeVar("IdsOf", list[int], npt.NDArray[np.int32])


@dataclass(frozen=True)
class Packed:
    """Documents one after another. A document of n tokens trains on n - 1: every one but the first is a target."""

    ids_N: npt.NDArray[np.int32]
    targets_N: npt.NDArray[np.int32]
    lengths: tuple[int, ...]
    """Tokens of each document, as inputs; their sum is N."""
    counted_N: Mask | None = None
    """Targets that are in the loss. None: all."""

    def split(self, max_tokens: int | None) -> list["Packed"]:
        """Parts of whole documents, in order, of at most `max_tokens` (one document at least)."""
        if max_tokens is None or len(self.ids_N) <= max_tokens:
            return [self]
        parts: list[Packed] = []
        start, lengths = 0, list[int]()
        for length in (*self.lengths, None):
            if lengths and (length is None or sum(lengths) + length > max_tokens):
                span = slice(start, start + sum(lengths))
                counted_N = None if self.counted_N is None else self.counted_N[span]
                parts.append(
                    Packed(self.ids_N[span], self.targets_N[span], tuple(lengths), counted_N)
                )
                start, lengths = span.stop, []
            if length is not None:
                lengths.append(length)
        return parts


@dataclass(frozen=True)
class Piece:
    """A document, or a stretch of one, that goes into a batch."""

    ids: Ids
    """At least two: all but the last are inputs, all but the first targets."""
    counted: Mask | None = None
    """Of the targets. None: all count."""


def own_targets(ids: Ids, tools: ToolIds | None) -> Mask | None:
    """Which targets are no tool's output, with the ids around it: nobody is to learn to make outputs up. None: all."""
    if tools is None or not (tools.output in ids or tools.end_output in ids):
        return None
    ids_T = np.asarray(ids)
    begun_T, ended_T = (ids_T == tools.output).cumsum(), (ids_T == tools.end_output).cumsum()
    is_cut = (
        bool(ended_T[-1]) and not begun_T[int((ended_T > 0).argmax())]
    )  # begins within an output
    inside_T = (begun_T + is_cut > ended_T) | (ids_T == tools.end_output)
    own: Mask = ~inside_T[1:]
    return own


def pack(documents: Sequence[Ids]) -> Packed:
    """Documents of at least two ids each, of which every target counts."""
    return pack_pieces([Piece(ids) for ids in documents])


def pack_pieces(pieces: Sequence[Piece]) -> Packed:
    counted_N = None
    if any(piece.counted is not None for piece in pieces):
        counted_N = np.concatenate([_counted(piece) for piece in pieces])
    return Packed(
        np.concatenate([np.array(piece.ids[:-1], dtype=np.int32) for piece in pieces]),
        np.concatenate([np.array(piece.ids[1:], dtype=np.int32) for piece in pieces]),
        tuple(len(piece.ids) - 1 for piece in pieces),
        counted_N,
    )


def _counted(piece: Piece) -> Mask:
    return np.ones(len(piece.ids) - 1, dtype=bool) if piece.counted is None else piece.counted


class Packing:
    """Packs the procedural corpus into batches of one size. Only a batch's last document is cut, where it is full."""

    def __init__(
        self, tokenizer: Tokenizer, corpus: CorpusConfig, config: PackingConfig, seed: int
    ) -> None:
        self.tokenizer, self.corpus, self.config, self.seed = tokenizer, corpus, config, seed

    @property
    def tokens_per_step(self) -> int:
        return self.config.step_tokens

    def batch(self, step: int) -> Packed:
        """The same for the same seed and step."""
        return pack_pieces(self.pieces(step, self.config.step_tokens))

    def pieces(self, step: int, room: int, take: Take | None = None) -> list[Piece]:
        """What `take` gives, by default our own; outputs of tools do not count as targets."""
        tools = self.tokenizer.tools
        return [Piece(ids, own_targets(ids, tools)) for ids in (take or self.take)(step, room)]

    def take(self, step: int, room: int) -> list[list[int]]:
        """As many of a step's documents as have `room` targets in all, the last one cut to fit."""
        longest = self.config.document_tokens
        return list(cut((p for ids in self._encoded(step) for p in _pieces(ids, longest)), room))

    def _encoded(self, step: int) -> Iterator[list[int]]:
        digest = hashlib.sha256(f"batch {self.seed} {step}".encode()).digest()
        source = documents(self.corpus, random.Random(int.from_bytes(digest[:16], "big")))
        while True:
            texts = [next(source) for _ in range(16)]
            yield from self.tokenizer.encode_batch(texts, allow_special=True)


def cut(pieces: Iterable[IdsOf], room: int) -> Iterator[IdsOf]:
    """As many of them as have `room` targets in all, the last one cut to fit."""
    if room == 0:
        return
    for piece in pieces:
        kept = piece[: room + 1]
        yield kept
        room -= len(kept) - 1
        if room == 0:
            return
    raise AssertionError(f"{room} targets too few")


def _pieces(ids: list[int], longest: int) -> Iterator[list[int]]:
    """A document too long for one piece goes on in the next, whose first input is the last target before."""
    for start in range(0, len(ids) - 1, longest):
        yield ids[start : start + longest + 1]
