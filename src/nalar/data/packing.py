"""Rows of a training batch: a pure function of (seed, step), so resuming needs the step number and nothing else."""

import hashlib
import random

import numpy as np
import numpy.typing as npt

from nalar.data.config import CorpusConfig, RowsConfig
from nalar.data.corpora.procedural import documents
from nalar.data.tokenizer import Tokenizer


def _row_rng(seed: int, step: int, row: int) -> random.Random:
    """An independent stream for every row, however close the numbers are."""
    digest = hashlib.sha256(f"rows {seed} {step} {row}".encode()).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))


class Rows:
    """Packs the corpus. Every row starts at the start of a document and is filled; its last document is cut."""

    def __init__(
        self, tokenizer: Tokenizer, corpus: CorpusConfig, config: RowsConfig, seed: int
    ) -> None:
        self.tokenizer, self.corpus, self.config, self.seed = tokenizer, corpus, config, seed

    @property
    def tokens_per_step(self) -> int:
        return self.config.rows * self.config.row_tokens

    def batch(self, step: int) -> npt.NDArray[np.int32]:
        """[rows, row_tokens + 1]: inputs are all but the last column, targets all but the first."""
        wanted = self.config.row_tokens + 1
        streams = [
            documents(self.corpus, _row_rng(self.seed, step, row))
            for row in range(self.config.rows)
        ]
        rows: list[list[int]] = [[] for _ in streams]
        short = list(range(len(rows)))
        while short:
            texts = []
            for row in short:
                # Most documents have more than a token for every two characters; the loop covers the others.
                room, text = 2 * (wanted - len(rows[row])), ""
                while len(text) < room:
                    text += next(streams[row])
                texts.append(text)
            for row, ids in zip(
                short, self.tokenizer.encode_batch(texts, allow_special=True), strict=True
            ):
                rows[row] += ids
            short = [row for row in short if len(rows[row]) < wanted]
        return np.array([row[:wanted] for row in rows], dtype=np.int32)
