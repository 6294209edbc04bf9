"""Batches of whole documents: a pure function of (seed, step), so resuming needs the step number and nothing else."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nalar.data.config import CorpusConfig, PackingConfig
from nalar.data.corpora.procedural import documents
from nalar.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Packed:
    """Documents one after another. A document of n tokens trains on n - 1: every one but the first is a target."""

    ids_N: npt.NDArray[np.int32]
    targets_N: npt.NDArray[np.int32]
    lengths: tuple[int, ...]
    """Tokens of each document, as inputs; their sum is N."""

    def split(self, max_tokens: int | None) -> list["Packed"]:
        """Parts of whole documents, in order, of at most `max_tokens` (one document at least)."""
        if max_tokens is None or len(self.ids_N) <= max_tokens:
            return [self]
        parts: list[Packed] = []
        start, lengths = 0, list[int]()
        for length in (*self.lengths, None):
            if lengths and (length is None or sum(lengths) + length > max_tokens):
                span = slice(start, start + sum(lengths))
                parts.append(Packed(self.ids_N[span], self.targets_N[span], tuple(lengths)))
                start, lengths = span.stop, []
            if length is not None:
                lengths.append(length)
        return parts


def pack(documents: list[list[int]]) -> Packed:
    """Documents of at least two ids each."""
    return Packed(
        np.concatenate([np.array(ids[:-1], dtype=np.int32) for ids in documents]),
        np.concatenate([np.array(ids[1:], dtype=np.int32) for ids in documents]),
        tuple(len(ids) - 1 for ids in documents),
    )


class Packing:
    """Packs the corpus into batches of one size. Only a batch's last document is cut, where the batch is full."""

    def __init__(
        self, tokenizer: Tokenizer, corpus: CorpusConfig, config: PackingConfig, seed: int
    ) -> None:
        self.tokenizer, self.corpus, self.config, self.seed = tokenizer, corpus, config, seed

    @property
    def tokens_per_step(self) -> int:
        return self.config.step_tokens

    def batch(self, step: int) -> Packed:
        """The same for the same seed and step."""
        chosen: list[list[int]] = []
        room = self.config.step_tokens
        for ids in self._documents(step):
            for piece in _pieces(ids, self.config.document_tokens):
                chosen.append(piece[: room + 1])
                room -= len(chosen[-1]) - 1
                if room == 0:
                    return pack(chosen)
        raise AssertionError("the corpus has no end")

    def _documents(self, step: int) -> Iterator[list[int]]:
        digest = hashlib.sha256(f"batch {self.seed} {step}".encode()).digest()
        source = documents(self.corpus, random.Random(int.from_bytes(digest[:16], "big")))
        while True:
            texts = [next(source) for _ in range(16)]
            yield from self.tokenizer.encode_batch(texts, allow_special=True)


def _pieces(ids: list[int], longest: int) -> Iterator[list[int]]:
    """A document too long for one piece goes on in the next, whose first input is the last target before."""
    for start in range(0, len(ids) - 1, longest):
        yield ids[start : start + longest + 1]
