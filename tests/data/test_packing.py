import random

import numpy as np
import pytest

from nalar.data.config import CorpusConfig, RowsConfig
from nalar.data.corpora.procedural import documents
from nalar.data.packing import Rows
from nalar.data.tokenizer import Tokenizer


def rows(tokenizer: Tokenizer, seed: int = 0, *, n: int = 4, row_tokens: int = 300) -> Rows:
    return Rows(tokenizer, CorpusConfig(), RowsConfig(rows=n, row_tokens=row_tokens), seed)


def test_a_batch_depends_on_seed_and_step_alone(tokenizer: Tokenizer) -> None:
    one, two = rows(tokenizer), rows(tokenizer)
    for step in range(5):
        one.batch(step)
    assert np.array_equal(one.batch(7), two.batch(7))
    assert not np.array_equal(one.batch(7), one.batch(8))
    assert not np.array_equal(one.batch(7), rows(tokenizer, seed=1).batch(7))


def test_a_row_does_not_depend_on_how_many_there_are(tokenizer: Tokenizer) -> None:
    assert np.array_equal(rows(tokenizer, n=2).batch(3), rows(tokenizer, n=5).batch(3)[:2])


@pytest.mark.parametrize("row_tokens", [2, 64, 1000])
def test_rows_are_full_and_start_at_documents(tokenizer: Tokenizer, row_tokens: int) -> None:
    batch = rows(tokenizer, row_tokens=row_tokens).batch(0)
    assert batch.shape == (4, row_tokens + 1) and batch.dtype == np.int32
    long = rows(tokenizer, row_tokens=1000).batch(0)
    assert np.array_equal(batch, long[:, : row_tokens + 1])


def test_packing_loses_no_token(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nalar.data.packing._row_rng", lambda *_: random.Random(5))
    got = rows(tokenizer, n=1, row_tokens=2000).batch(0)[0].tolist()
    want: list[int] = []
    for doc in documents(CorpusConfig(), random.Random(5)):
        want += tokenizer.encode(doc, allow_special=True)
        if len(want) > 2000:
            break
    assert got == want[:2001]
