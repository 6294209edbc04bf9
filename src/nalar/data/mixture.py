"""Batches from several sources by weight: a pure function of (seed, step).

A source is a stream of targets without end. By step s the whole mixture has taken s × step_tokens of them, and how many
of these each source gave follows from the weights alone, so where a step begins in every stream is arithmetic. There is
no state of a loader: a checkpoint that knows its step knows where to go on.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nalar.data.ahead import Ahead
from nalar.data.cache import TokenCache
from nalar.data.packing import Mask, Packed, Packing, Piece, pack_pieces

# D documents · U units: stretches of at most `longest` targets of one document · P pieces
Indices = npt.NDArray[np.int64]


class Stream(Protocol):
    """A source without end."""

    def take(self, step: int, start: int, stop: int) -> list[Piece]:
        """What a step takes: the targets from the `start`-th of the stream to before the `stop`-th."""
        ...

    def close(self) -> None:
        """End what works for it."""
        ...


class Mixture:
    """Streams by weight, in batches of one size (but for whole dialogues, whose size is so on average)."""

    def __init__(self, streams: Sequence[tuple[Stream, float]], step_tokens: int) -> None:
        self._streams = [stream for stream, _ in streams]
        self._weights = [Fraction(weight) for _, weight in streams]
        self._step_tokens = step_tokens

    @property
    def tokens_per_step(self) -> int:
        return self._step_tokens

    def batch(self, step: int) -> Packed:
        """The same for the same seed and step."""
        before = shares(self._weights, step * self._step_tokens)
        after = shares(self._weights, (step + 1) * self._step_tokens)
        taken = zip(self._streams, before, after, strict=True)
        return pack_pieces([p for stream, a, b in taken for p in stream.take(step, a, b)])

    def close(self) -> None:
        """No more batches are wanted."""
        for stream in self._streams:
            stream.close()


def shares(weights: Sequence[Fraction], tokens: int) -> list[int]:
    """How many of the first `tokens` of a mixture each source gives: by weight, to within one for each source before.

    No entry falls as `tokens` grows, and their sum is `tokens`: the first source and all others share, then the second
    and all others share the rest, and so on.
    """
    found, rest, mass = list[int](), tokens, sum(weights)
    for weight in weights[:-1]:
        found.append(math.floor(rest * weight / mass))
        rest, mass = rest - found[-1], mass - weight
    return [*found, rest]


class ProceduralStream:
    """The procedural corpus: documents of the step's own, so that none goes on in the next."""

    def __init__(self, packing: Packing, processes: int = 0) -> None:
        """processes: that make documents of later steps; 0: all are made when they are asked for."""
        self._packing = packing
        self._ahead = Ahead(packing, processes) if processes else None

    def take(self, step: int, start: int, stop: int) -> list[Piece]:
        take = self._ahead.take if self._ahead else None
        return self._packing.pieces(step, stop - start, take)

    def close(self) -> None:
        if self._ahead:
            self._ahead.close()


@dataclass(frozen=True)
class _Epoch:
    """One pass over a source, in an order of its own."""

    number: int
    units_U: Indices
    ends_U: Indices
    """Targets of the units so far, each included."""


class CachedStream:
    """A cached source, pass after pass, in a new order each time: that of its units.

    A unit is a document, or a stretch of `longest` targets of a longer one. With `is_whole`, for dialogues, longer ones
    are left out and none is ever cut: a step takes those that begin in its share. Only then is it said which targets
    are the assistant's own: to pretraining all count.
    """

    def __init__(
        self,
        cache: TokenCache,
        *,
        longest: int,
        name: str,
        is_whole: bool = False,
        chosen_D: Mask | None = None,
    ) -> None:
        """name: seeds the orders, so it names the run's seed and the source. chosen_D: documents that belong to it."""
        self._cache, self._longest, self._name, self._is_whole = cache, longest, name, is_whole
        targets_D: Indices = cache.lengths_D - 1
        units_D = -(-targets_D // longest)
        if chosen_D is not None:
            units_D = np.where(chosen_D, units_D, 0)
        chosen = int((units_D > 0).sum())
        if is_whole:
            units_D = np.where(targets_D <= longest, units_D, 0)
        self.documents = int((units_D > 0).sum())
        self.left_out = chosen - self.documents
        """Documents that are too long to come whole."""
        self._ends_D: Indices = np.cumsum(units_D)
        # As documents stand: all units of one are of the full length but its last.
        self._targets_U: Indices = np.full(int(self._ends_D[-1]), longest, dtype=np.int64)
        kept = units_D > 0
        self._targets_U[self._ends_D[kept] - 1] = (targets_D - (units_D - 1) * longest)[kept]
        self.targets = int(self._targets_U.sum())
        """Of one pass."""
        self._epoch: _Epoch | None = None

    def once(self, max_tokens: int) -> Iterator[Packed]:
        """One pass in the order of the source, in batches of at most `max_tokens` (one unit at least)."""
        first, ends_U = 0, np.cumsum(self._targets_U)
        while first < len(ends_U):
            until = ends_U[first] - self._targets_U[first] + max_tokens
            end = max(int(np.searchsorted(ends_U, until, side="right")), first + 1)
            units = np.arange(first, end)
            yield pack_pieces(self._pieces(units, np.zeros_like(units), self._targets_U[units]))
            first = end

    def take(self, step: int, start: int, stop: int) -> list[Piece]:
        pieces: list[Piece] = []
        while start < stop:
            number, at = divmod(start, self.targets)
            until = min(at + stop - start, self.targets)
            epoch = self._at(number)
            pieces += (
                self._whole(epoch, at, until) if self._is_whole else self._cut(epoch, at, until)
            )
            start += until - at
        return pieces

    def close(self) -> None:
        """Mapped files need no end."""

    def _cut(self, epoch: _Epoch, at: int, until: int) -> list[Piece]:
        """Targets `at` to before `until` of a pass. What is left of a unit begins the next step as a document."""
        first, last = np.searchsorted(epoch.ends_U, (at, until - 1), side="right")
        units, ends = epoch.units_U[first : last + 1], epoch.ends_U[first : last + 1]
        begins = ends - self._targets_U[units]
        return self._pieces(units, np.maximum(at - begins, 0), np.minimum(ends, until) - begins)

    def _whole(self, epoch: _Epoch, at: int, until: int) -> list[Piece]:
        """The units of a pass that begin at its targets `at` to before `until`."""
        # A unit begins where the one before it ends, so those that end before `at` begin before the next one.
        first, last = (int(np.searchsorted(epoch.ends_U, t)) + (t > 0) for t in (at, until))
        units = epoch.units_U[first:last]
        return self._pieces(units, np.zeros_like(units), self._targets_U[units])

    def _pieces(self, units_P: Indices, starts_P: Indices, stops_P: Indices) -> list[Piece]:
        """Of each unit the targets from `start` to before `stop`, with the id before them."""
        documents_P = np.searchsorted(self._ends_D, units_P, side="right")
        firsts_P = np.where(documents_P > 0, self._ends_D[documents_P - 1], 0)
        skipped_P = (units_P - firsts_P) * self._longest
        spans = zip(documents_P, skipped_P + starts_P, skipped_P + stops_P, strict=True)
        return [
            Piece(
                self._cache.ids(int(document), int(start), int(stop) + 1),
                self._cache.counted(int(document), int(start) + 1, int(stop) + 1)
                if self._is_whole
                else None,
            )
            for document, start, stop in spans
        ]

    def _at(self, number: int) -> _Epoch:
        """Kept from step to step: an order takes a while to make."""
        if self._epoch is None or self._epoch.number != number:
            self._epoch = self._order(number)
        return self._epoch

    def _order(self, number: int) -> _Epoch:
        seed = hashlib.sha256(f"order {self._name} {number}".encode()).digest()
        # Raw words of the bit generator, which numpy promises never to change; sorting them makes an order.
        words_U = np.random.Philox(int.from_bytes(seed[:16], "big")).random_raw(
            len(self._targets_U)
        )
        units_U = np.argsort(words_U, kind="stable")
        return _Epoch(number, units_U, np.cumsum(self._targets_U[units_U]))
