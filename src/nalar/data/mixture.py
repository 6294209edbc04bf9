"""Batches from several sources by weight: a pure function of (seed, step).

A source is a stream of targets without end. By step s the whole mixture has taken s × step_tokens of them, and how many
of these each source gave follows from the weights alone, so where a step begins in every stream is arithmetic. There is
no state of a loader: a checkpoint that knows its step knows where to go on.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nalar.data.cache import TokenCache
from nalar.data.packing import Packed, Packing, Piece, pack_pieces

# D documents · U units: stretches of at most `longest` targets of one document
Indices = npt.NDArray[np.int64]


class Stream(Protocol):
    """A source without end."""

    def take(self, step: int, start: int, stop: int) -> list[Piece]:
        """What a step takes: the targets from the `start`-th of the stream to before the `stop`-th."""
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

    def __init__(self, packing: Packing) -> None:
        self._packing = packing

    def take(self, step: int, start: int, stop: int) -> list[Piece]:
        return [Piece(ids) for ids in self._packing.take(step, stop - start)]


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
    are left out and none is ever cut: a step takes those that begin in its share.
    """

    def __init__(
        self, cache: TokenCache, *, longest: int, name: str, is_whole: bool = False
    ) -> None:
        """name: seeds the orders, so it names the run's seed and the source."""
        self._cache, self._longest, self._name, self._is_whole = cache, longest, name, is_whole
        self._targets_D: Indices = cache.lengths_D - 1
        units_D = -(-self._targets_D // longest)
        if is_whole:
            units_D = np.where(self._targets_D <= longest, units_D, 0)
        self.left_out = int((units_D == 0).sum())
        """Documents that are too long to come whole."""
        self._ends_D: Indices = np.cumsum(units_D)
        self.targets = int(self._targets_D[units_D > 0].sum())
        """Of one pass."""
        self._epoch = self._order(0) if self.targets else None

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

    def _cut(self, epoch: _Epoch, at: int, until: int) -> list[Piece]:
        """Targets `at` to before `until` of a pass. What is left of a unit begins the next step as a document."""
        pieces = []
        unit = int(np.searchsorted(epoch.ends_U, at, side="right"))
        while at < until:
            begin = int(epoch.ends_U[unit - 1]) if unit else 0
            end = min(int(epoch.ends_U[unit]), until)
            pieces.append(self._piece(int(epoch.units_U[unit]), at - begin, end - begin))
            at, unit = end, unit + 1
        return pieces

    def _whole(self, epoch: _Epoch, at: int, until: int) -> list[Piece]:
        """The units of a pass that begin at its targets `at` to before `until`."""
        begins_U = np.concatenate([[0], epoch.ends_U])
        first, last = np.searchsorted(begins_U[:-1], (at, until))
        lengths = np.diff(begins_U[first : last + 1])
        units = epoch.units_U[first:last]
        return [self._piece(int(unit), 0, int(n)) for unit, n in zip(units, lengths, strict=True)]

    def _piece(self, unit: int, start: int, stop: int) -> Piece:
        """Targets `start` to before `stop` of a unit, with the id before them."""
        document = int(np.searchsorted(self._ends_D, unit, side="right"))
        first = int(self._ends_D[document - 1]) if document else 0
        skipped = (unit - first) * self._longest
        start, stop = skipped + start, skipped + stop
        return Piece(
            self._cache.ids(document, start, stop + 1),
            self._cache.counted(document, start + 1, stop + 1),
        )

    def _at(self, number: int) -> _Epoch:
        """Kept from step to step: an order takes a while to make."""
        if self._epoch is None or self._epoch.number != number:
            self._epoch = self._order(number)
        return self._epoch

    def _order(self, number: int) -> _Epoch:
        units = int(self._ends_D[-1])
        seed = hashlib.sha256(f"order {self._name} {number}".encode()).digest()
        # Raw words of the bit generator, which numpy promises never to change; sorting them makes an order.
        words_U = np.random.Philox(int.from_bytes(seed[:16], "big")).random_raw(units)
        units_U = np.argsort(words_U, kind="stable")
        document_U = np.searchsorted(self._ends_D, units_U, side="right")
        first_U = np.where(document_U > 0, self._ends_D[document_U - 1], 0)
        rest_U = self._targets_D[document_U] - (units_U - first_U) * self._longest
        return _Epoch(number, units_U, np.cumsum(np.minimum(rest_U, self._longest)))
