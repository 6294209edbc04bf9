"""Batches from streams: nothing lost, nothing twice, and the same whenever they are asked for."""

import json
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nalar.data.build import cached
from nalar.data.config import CorpusConfig, FileSource, PackingConfig
from nalar.data.mixture import CachedStream, Mixture, ProceduralStream, shares
from nalar.data.packing import Packing
from nalar.data.reader import open_source

WEIGHTS = st.lists(st.floats(1e-3, 1e3).map(Fraction), min_size=1, max_size=5)


@pytest.fixture
def cache(tmp_path: Path, tokenizer):
    """Documents of 2 to 200 ids, each target marked by its document: no two have the same words."""
    lines = [json.dumps({"text": f"{n} " * (1 + n * n % 50)}) for n in range(40)]
    return cache_of(tmp_path, tokenizer, lines)


def cache_of(tmp_path: Path, tokenizer, lines: list[str], **settings):
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = FileSource(path=str(tmp_path / "a.jsonl"), **settings)
    return cached(open_source(source), tokenizer, tmp_path / "cache", max_bad_frac=0.0)


def stream_of(cache, longest: int = 32, name: str = "0 0", **settings) -> CachedStream:
    return CachedStream(cache, longest=longest, name=name, **settings)


def pairs(packed) -> list[tuple[int, int]]:
    return list(zip(packed.ids_N.tolist(), packed.targets_N.tolist(), strict=True))


def all_pairs(cache) -> Counter:
    whole = [cache.ids(n, 0, int(size)).tolist() for n, size in enumerate(cache.lengths_D)]
    return Counter(pair for ids in whole for pair in pairwise(ids))


@given(weights=WEIGHTS, tokens=st.lists(st.integers(0, 10**12), min_size=2, max_size=6))
def test_shares_add_up_never_fall_and_keep_to_the_weights(weights, tokens) -> None:
    found = [shares(weights, n) for n in sorted(tokens)]
    for n, each in zip(sorted(tokens), found, strict=True):
        assert sum(each) == n
        for number, (share, weight) in enumerate(zip(each, weights, strict=True)):
            assert abs(share - n * weight / sum(weights)) <= number + 1
    for before, after in pairwise(found):
        assert all(a <= b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("step_tokens", [7, 64, 1000])
@pytest.mark.parametrize("longest", [1, 5, 32, 10**6])
def test_an_epoch_trains_on_every_target_once(cache, step_tokens, longest) -> None:
    """Each with the id before it as its input, however batches and pieces are cut."""
    stream = stream_of(cache, longest)
    assert stream.targets == sum(all_pairs(cache).values())
    mixture = Mixture([(stream, 1.0)], step_tokens)
    steps = -(-2 * stream.targets // step_tokens)
    seen = [pair for step in range(steps) for pair in pairs(mixture.batch(step))]
    first, second = seen[: stream.targets], seen[stream.targets : 2 * stream.targets]
    assert Counter(first) == Counter(second) == all_pairs(cache)
    assert first != second  # the order is a new one


def test_documents_are_cut_at_the_longest_and_at_the_ends_of_batches_alone(cache) -> None:
    mixture = Mixture([(stream_of(cache, 32), 1.0)], 100)
    for step in range(20):
        packed = mixture.batch(step)
        assert sum(packed.lengths) == len(packed.ids_N) == len(packed.targets_N) == 100
        assert packed.ids_N.dtype == packed.targets_N.dtype == np.int32
        assert packed.counted_N is None
        assert max(packed.lengths) <= 32
        ends = np.cumsum(packed.lengths) - 1
        for length, end in zip(packed.lengths[1:-1], ends[1:-1], strict=True):
            assert length == 32 or packed.targets_N[end] == 0  # a whole stretch, or up to <|end|>


def test_what_a_batch_cuts_goes_on_in_the_next(cache) -> None:
    small, large = (Mixture([(stream_of(cache), 1.0)], n) for n in (50, 200))
    for step in range(8):
        parts = [pair for n in range(4) for pair in pairs(small.batch(4 * step + n))]
        assert parts == pairs(large.batch(step))


def test_a_batch_depends_on_name_and_step_alone(cache) -> None:
    one, two, other = (
        Mixture([(stream_of(cache, name=name), 1.0)], 64) for name in ("0 0", "0 0", "1 0")
    )
    forward = [pairs(one.batch(step)) for step in range(60)]
    assert [pairs(two.batch(step)) for step in reversed(range(60))] == forward[::-1]
    assert [pairs(other.batch(step)) for step in range(60)] != forward


def test_sources_give_by_weight_and_each_is_read_whole(tmp_path, tokenizer) -> None:
    caches = []
    for name in "ab":
        (tmp_path / name).mkdir()
        lines = [json.dumps({"text": name * (3 + n)}) for n in range(30)]
        caches.append(cache_of(tmp_path / name, tokenizer, lines))
    streams = [
        (stream_of(c, name=f"0 {n}"), w)
        for n, (c, w) in enumerate(zip(caches, (3, 1), strict=True))
    ]
    mixture = Mixture(streams, 90)
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    seen = Counter[tuple[int, int]]()
    steps = -(-4 * streams[1][0].targets // 90)
    for step in range(steps):
        packed = mixture.batch(step)
        seen.update(pairs(packed))
        assert abs(int((packed.ids_N == a).sum()) - 67.5) < 1
    for cache, letter in zip(caches, (a, b), strict=True):
        whole = all_pairs(cache)
        mine = {pair: n for pair, n in seen.items() if pair[0] == letter}
        assert mine.keys() == whole.keys()
    assert seen[b, 0] in (30, 31)


def test_the_procedural_corpus_alone_is_what_it_was(tokenizer) -> None:
    packing = Packing(tokenizer, CorpusConfig(), PackingConfig(step_tokens=500), seed=3)
    mixture = Mixture([(ProceduralStream(packing), 0.3)], 500)
    assert mixture.tokens_per_step == 500
    for step in range(4):
        one, two = mixture.batch(step), packing.batch(step)
        assert pairs(one) == pairs(two) and one.lengths == two.lengths


def test_the_procedural_corpus_and_files_fill_one_batch(cache, tokenizer) -> None:
    packing = Packing(tokenizer, CorpusConfig(), PackingConfig(step_tokens=500), seed=3)
    mixture = Mixture([(ProceduralStream(packing), 0.5), (stream_of(cache), 0.5)], 500)
    whole = all_pairs(cache)
    for step in range(4):
        packed = mixture.batch(step)
        assert pairs(packed)[:250] == pairs(packing.batch(step))[:250]
        assert all(pair in whole for pair in pairs(packed)[250:])


def test_a_share_of_nothing_in_a_step_is_no_error(cache, tokenizer) -> None:
    packing = Packing(tokenizer, CorpusConfig(), PackingConfig(step_tokens=8), seed=3)
    mixture = Mixture([(ProceduralStream(packing), 1.0), (stream_of(cache), 0.01)], 8)
    assert all(len(mixture.batch(step).ids_N) == 8 for step in range(30))


@pytest.fixture
def dialogues(tmp_path: Path, tokenizer):
    turns = [
        [
            {"role": "user", "content": f"{n}?"},
            {"role": "assistant", "content": f"{n} " * (1 + n % 9)},
        ]
        for n in range(50)
    ]
    lines = [json.dumps({"messages": t}) for t in turns]
    return cache_of(tmp_path, tokenizer, lines, content="dialogue")


def test_whole_dialogues_come_once_an_epoch_and_uncut(dialogues) -> None:
    longest = int(dialogues.lengths_D.max()) - 1
    stream = stream_of(dialogues, longest, is_whole=True)
    mixture = Mixture([(stream, 1.0)], longest + 5)
    want = Counter(
        tuple(dialogues.ids(n, 0, int(size)).tolist()) for n, size in enumerate(dialogues.lengths_D)
    )
    found = Counter[tuple[int, ...]]()
    step = 0
    while found.total() < 2 * 50:
        packed = mixture.batch(step)
        assert len(packed.ids_N) == len(packed.counted_N) == sum(packed.lengths) > 0
        at = 0
        for n in packed.lengths:
            targets = packed.targets_N[at : at + n].tolist()
            found[(int(packed.ids_N[at]), *targets)] += 1
            at += n
        step += 1
    assert found.total() == 100 or found.total() < 100 + 10
    assert all(found[ids] >= 2 for ids in want)
    assert found.keys() == want.keys()


def test_what_counts_is_what_the_assistant_says(dialogues, tokenizer) -> None:
    mixture = Mixture([(stream_of(dialogues, 10**6, is_whole=True), 1.0)], 100)
    packed = mixture.batch(0)
    end_think, user = tokenizer.end_think_id, tokenizer.user_id
    at = 0
    for n in packed.lengths[:-1]:
        targets, counted = packed.targets_N[at : at + n], packed.counted_N[at : at + n]
        begins = at == 0 or packed.ids_N[at] == user
        if begins and end_think in targets:
            closed = targets.tolist().index(end_think)
            assert not counted[: closed + 1].any() and counted[closed + 1 :].all()
        at += n
    parts = packed.split(30)
    assert len(parts) > 1
    assert np.concatenate([part.counted_N for part in parts]).tolist() == packed.counted_N.tolist()


def test_a_dialogue_that_is_too_long_is_left_out_whole(dialogues) -> None:
    stream = stream_of(dialogues, 12, is_whole=True)
    longer = dialogues.lengths_D > 13
    assert stream.left_out == int(longer.sum()) > 0
    assert stream.targets == int((dialogues.lengths_D[~longer] - 1).sum())
    mixture = Mixture([(stream, 1.0)], 40)
    assert max(max(mixture.batch(step).lengths) for step in range(30)) <= 12


def test_dialogues_and_text_fill_one_batch(dialogues, cache) -> None:
    whole = stream_of(dialogues, 100, is_whole=True)
    packed = Mixture([(stream_of(cache), 1.0), (whole, 1.0)], 100).batch(0)
    assert packed.counted_N[:50].all() and not packed.counted_N[50:].all()


def test_pretraining_counts_every_token_of_a_dialogue(dialogues) -> None:
    assert Mixture([(stream_of(dialogues), 1.0)], 100).batch(0).counted_N is None
