"""Steps on their way, and what they gave once they are done.

K steps of a run · D draws of a step
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nalar.engine.sample import Sample
from nalar.engine.sequence import PromptLogprob, TopLogprobs

NO_GUESS = -1

Prompts = tuple[tuple[Sample, tuple[PromptLogprob, ...]], ...]
"""What was found of prompts, a chunk at a time."""


class Tokens(NamedTuple):
    """What a step gave one sample, or several steps did, in order."""

    sample: Sample
    ids: list[int]
    logprobs: list[float]
    processed_logprobs: list[float]
    tops: list[TopLogprobs]
    """Empty where nobody asked."""
    is_forced: bool

    def extend(self, later: "Tokens") -> None:
        self.ids.extend(later.ids)
        self.logprobs.extend(later.logprobs)
        self.processed_logprobs.extend(later.processed_logprobs)
        self.tops.extend(later.tops)


@dataclass(frozen=True)
class Pending:
    """Steps on their way: `tokens` waits for them."""

    samples: tuple[Sample, ...]
    """D, whose tokens these are; neighbours that are the same drew one behind the other."""
    prompts: Prompts
    _ids: Tensor
    """[K, D], as the next two."""
    _logprobs: Tensor
    _processed: Tensor
    _run: tuple[int, ...] = ()
    """Of each of D: how many of K count. Empty: all."""
    _top: tuple[Tensor, Tensor] | None = None
    _forced: frozenset[int] = frozenset()
    _guesses: Tensor | None = None
    """int64 [D]: a token counts if the one before it is this one; NO_GUESS: in any case."""
    _event: torch.cuda.Event | None = None

    def tokens(self) -> list[Tokens]:
        if self._event is not None:
            self._event.synchronize()
        if not bool(self._logprobs.isfinite().all()):
            raise FloatingPointError("engine: the model's logits are not finite (NaN or infinite)")
        columns = [x.T.tolist() for x in (self._ids, self._logprobs, self._processed)]
        if self._run:
            columns = [[c[:n] for c, n in zip(x, self._run, strict=True)] for x in columns]
        tops: list[list[TopLogprobs]] = [[] for _ in self.samples]
        if self._top is not None:
            rows = zip(pairs(*self._top), self.samples, strict=True)
            found = [_first(row, s.request.params.logprobs) for row, s in rows]
            tops = [[] if top is None else [top] for top in found]
        forced = [i in self._forced for i in range(len(self.samples))]
        each = map(Tokens, self.samples, *columns, tops, forced)
        return list(each) if self._guesses is None else self._accepted(each, self._guesses)

    def _accepted(self, each: Iterable[Tokens], guesses: Tensor) -> list[Tokens]:
        """One entry a sample: the tokens drawn behind true ones, since all guesses before them were right."""
        accepted: list[Tokens] = []
        is_true, before = True, NO_GUESS
        for tokens, guess in zip(each, guesses.tolist(), strict=True):
            if guess == NO_GUESS:
                is_true = True
                accepted.append(tokens)
            else:
                is_true = is_true and guess == before
                if is_true:
                    accepted[-1].extend(tokens)
            before = tokens.ids[0]
        return accepted


def pairs(ids: Tensor, logprobs: Tensor) -> list[TopLogprobs]:
    rows = zip(ids.tolist(), logprobs.tolist(), strict=True)
    return [tuple(zip(i, p, strict=True)) for i, p in rows]


def _first(top: TopLogprobs, count: int | None) -> TopLogprobs | None:
    return None if count is None else top[:count]
