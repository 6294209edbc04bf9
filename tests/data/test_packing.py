from itertools import islice

import numpy as np
import pytest

from nalar.data.config import CorpusConfig, PackingConfig
from nalar.data.packing import Packing, pack
from nalar.data.template import END
from nalar.data.tokenizer import Tokenizer

LONG = 100_000


def packing(
    tokenizer: Tokenizer, seed: int = 0, *, step: int = 1200, document: int = LONG
) -> Packing:
    config = PackingConfig(step_tokens=step, document_tokens=document)
    return Packing(tokenizer, CorpusConfig(), config, seed)


def same(one, two) -> bool:
    return (
        np.array_equal(one.ids_N, two.ids_N)
        and np.array_equal(one.targets_N, two.targets_N)
        and one.lengths == two.lengths
    )


def whole(packed) -> list[list[int]]:
    """The documents again, each with its last target."""
    found, at = [], 0
    for n in packed.lengths:
        found.append([*packed.ids_N[at : at + n].tolist(), int(packed.targets_N[at + n - 1])])
        assert packed.targets_N[at : at + n - 1].tolist() == found[-1][1:-1]
        at += n
    assert at == len(packed.ids_N) == len(packed.targets_N)
    return found


def test_a_batch_depends_on_seed_and_step_alone(tokenizer: Tokenizer) -> None:
    one, two = packing(tokenizer), packing(tokenizer)
    for step in range(5):
        one.batch(step)
    assert same(one.batch(7), two.batch(7))
    assert not same(one.batch(7), one.batch(8))
    assert not same(one.batch(7), packing(tokenizer, seed=1).batch(7))


@pytest.mark.parametrize("step_tokens", [2, 3, 64, 1200])
def test_every_batch_is_full(tokenizer: Tokenizer, step_tokens: int) -> None:
    for step in range(20):
        batch = packing(tokenizer, step=step_tokens).batch(step)
        assert batch.ids_N.dtype == batch.targets_N.dtype == np.int32
        assert sum(batch.lengths) == len(batch.ids_N) == step_tokens
        assert min(batch.lengths) >= 1


def test_only_the_last_document_is_cut(tokenizer: Tokenizer) -> None:
    end = tokenizer.encode(END, allow_special=True)
    found = whole(packing(tokenizer).batch(0))
    assert len(found) > 5
    for ids in found[:-1]:
        assert ids[-1:] == end and end[0] not in ids[:-1]


def test_a_smaller_batch_is_the_start_of_a_larger_one(tokenizer: Tokenizer) -> None:
    small, large = (whole(packing(tokenizer, step=n).batch(3)) for n in (500, 1200))
    assert small[:-1] == large[: len(small) - 1]
    assert large[len(small) - 1][: len(small[-1])] == small[-1]


def test_a_long_document_is_cut_into_pieces_and_no_target_is_lost(tokenizer: Tokenizer) -> None:
    one, cut = packing(tokenizer).batch(0), packing(tokenizer, document=7).batch(0)
    assert max(one.lengths) > 7 >= max(cut.lengths)
    assert np.array_equal(one.targets_N, cut.targets_N)
    assert np.array_equal(one.ids_N, cut.ids_N)


def test_documents_of_the_corpus_stand_in_their_order(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["1+1=2" + END, "12" + END, "4*5=20,1+2=3" + END] * 30
    monkeypatch.setattr("nalar.data.packing.documents", lambda *_: iter(texts))
    want = [tokenizer.encode(text, allow_special=True) for text in texts]
    got = whole(packing(tokenizer, step=200).batch(0))
    assert got[:-1] == list(islice(want, len(got) - 1))


def test_a_document_gives_every_token_but_its_first_as_a_target() -> None:
    packed = pack([[5, 6, 7], [8, 9]])
    assert packed.ids_N.tolist() == [5, 6, 8]
    assert packed.targets_N.tolist() == [6, 7, 9]
    assert packed.lengths == (2, 1)


def test_parts_of_a_batch_are_whole_documents_in_order() -> None:
    packed = pack([[1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11]])
    assert packed.split(None) == [packed]
    assert [p.lengths for p in packed.split(3)] == [(2, 1), (3,), (1,)]
    assert [p.lengths for p in packed.split(1)] == [(2,), (1,), (3,), (1,)]
    parts = packed.split(4)
    assert [p.lengths for p in parts] == [(2, 1), (3, 1)]
    assert np.concatenate([p.ids_N for p in parts]).tolist() == packed.ids_N.tolist()
    assert np.concatenate([p.targets_N for p in parts]).tolist() == packed.targets_N.tolist()
