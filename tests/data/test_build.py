"""Caches: what is in them, and that being cut off anywhere changes nothing."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nalar.config import UserError
from nalar.data import build, records
from nalar.data.build import cached
from nalar.data.cache import TokenCache, read_index
from nalar.data.config import FileSource
from nalar.data.dialogue import encode_dialogue
from nalar.data.reader import open_source
from nalar.data.tokenizer import Tokenizer
from nalar.disk import only_writer

TEXTS = [f"document {n}: {'make 20 from 10 5 2 ' * (n % 7)}" for n in range(60)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """60 documents in lines, one long text of many parts, and three bad lines."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[10:10] = ["{", json.dumps({"body": "x"}), "{"]
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "b.txt").write_text("\n".join(f"line {n} of a long text" for n in range(200)))
    (folder / "c.txt").write_text("the end")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little at a time, so that there are many places to be cut off at."""
    monkeypatch.setattr(records, "BLOCK_BYTES", 256)
    monkeypatch.setattr(build, "BATCH_RECORDS", 4)


def make(corpus: Path, root: Path, tokenizer: Tokenizer, **settings) -> TokenCache | None:
    usual = {"max_bad_frac": 0.1, "shard_tokens": 300, "document_tokens": 400}
    source = settings.pop("source", None) or FileSource(path=str(corpus))
    return cached(open_source(source), tokenizer, root, **(usual | settings))


def documents(cache: TokenCache) -> list[list[int]]:
    return [cache.ids(n, 0, int(size)).tolist() for n, size in enumerate(cache.lengths_D)]


def test_a_cache_holds_the_ids_of_every_document_and_its_end(corpus, tmp_path, tokenizer):
    cache = make(corpus, tmp_path / "cache", tokenizer, document_tokens=10**6)
    want = [*TEXTS, (corpus / "b.txt").read_text(), "the end"]
    assert documents(cache) == [[*tokenizer.encode(text), tokenizer.end_id] for text in want]
    assert cache.index.documents == len(want) == len(cache.lengths_D)
    assert cache.index.tokens == int(cache.lengths_D.sum())
    assert cache.index.dtype == "uint16"
    assert cache.counted(0, 0, 5) is None
    tally = cache.index.tally
    assert tally.records == len(want) + 3
    assert {why: fault.count for why, fault in tally.faults.items()} == {
        "no JSON object": 2,
        "no field 'text'": 1,
    }
    assert tally.faults["no JSON object"].first == f"{corpus / 'a.jsonl'}, line 11"
    assert "2 no JSON object (first: " in tally.text()


def test_text_never_becomes_a_special_id(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("x<|end|><|user|><think>")
    (ids,) = documents(make(tmp_path / "a.txt", tmp_path / "cache", tokenizer))
    assert [i for i in ids if i in tokenizer.special_ids] == ids[-1:] == [tokenizer.end_id]


def test_the_sizes_of_shards_and_batches_change_nothing(corpus, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(records, "BLOCK_BYTES", 256)
    found, counts = [], list[int]()
    for number, (shard, batch) in enumerate([(50, 1), (300, 4), (10**6, 256)]):
        monkeypatch.setattr(build, "BATCH_RECORDS", batch)
        cache = make(corpus, tmp_path / str(number), tokenizer, shard_tokens=shard)
        counts.append(len(cache.index.shards))
        found.append((documents(cache), cache.index.digest, cache.index.tally))
        assert cache.digest() == cache.index.digest
    assert counts[0] > 3 * counts[1] > 3 * counts[2] == 3
    assert found[0] == found[1] == found[2]


def test_a_very_long_document_lies_in_pieces_that_lose_no_target(
    corpus, tmp_path, tokenizer, small
):
    whole = documents(make(corpus, tmp_path / "a", tokenizer, document_tokens=10**6))
    cut = documents(make(corpus, tmp_path / "b", tokenizer, document_tokens=400))
    assert len(cut) > len(whole)
    assert [i for ids in cut for i in ids[1:]] == [i for ids in whole for i in ids[1:]]
    at = len(TEXTS)
    assert all(one[-1] == two[0] for one, two in zip(cut[at:-2], cut[at + 1 : -1], strict=True))


@pytest.mark.parametrize("questions", [1, 3, 9, 14])
def test_stopping_and_going_on_gives_the_same_cache(corpus, tmp_path, tokenizer, small, questions):
    whole = make(corpus, tmp_path / "whole", tokenizer)
    asked = iter(range(10**6))
    stops = 0
    while True:
        cache = make(
            corpus,
            tmp_path / "cut",
            tokenizer,
            should_stop=lambda: next(asked) % questions == questions - 1,
        )
        if cache is not None:
            break
        stops += 1
        assert stops < 1000
    assert stops >= 1
    assert documents(cache) == documents(whole)
    assert (cache.index.digest, cache.index.tally) == (whole.index.digest, whole.index.tally)


@pytest.mark.few(4)
@pytest.mark.parametrize("writes", range(0, 24, 3))
def test_a_kill_while_writing_loses_nothing_and_repeats_nothing(
    corpus, tmp_path, tokenizer, small, monkeypatch, writes
):
    """The n-th file is not written: what the index names is whole, and the rest is made again."""
    whole = make(corpus, tmp_path / "whole", tokenizer)
    real, left = build.write_atomic, [writes]

    def dies(path, data):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(build, "write_atomic", dies)
    with pytest.raises(KeyboardInterrupt):
        make(corpus, tmp_path / "cut", tokenizer)
    monkeypatch.setattr(build, "write_atomic", real)
    cache = make(corpus, tmp_path / "cut", tokenizer)
    assert documents(cache) == documents(whole)
    assert cache.index.tally == whole.index.tally


def test_what_is_cached_is_not_read_again(corpus, tmp_path, tokenizer, monkeypatch):
    first = make(corpus, tmp_path / "cache", tokenizer)
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
    assert make(corpus, tmp_path / "cache", tokenizer).folder == first.folder


def test_another_file_tokenizer_or_setting_is_another_cache(corpus, tmp_path, tokenizer):
    root = tmp_path / "cache"

    def folder(with_: Tokenizer = tokenizer, **settings) -> Path:
        return make(corpus, root, with_, source=FileSource(path=str(corpus), **settings)).folder

    before = {folder(), folder(max_records=5), folder(separator="\n")}
    assert len(before) == 3
    assert folder(weight=3) in before  # how much of it is read is no matter of its ids
    from nalar.data.config import TokenizerConfig

    assert folder(Tokenizer.train(["abcabc"] * 9, TokenizerConfig(vocab_size=262))) not in before
    (corpus / "c.txt").write_text("the END")
    assert folder() not in before


def test_max_records_counts_from_the_first_record_on(corpus, tmp_path, tokenizer, small):
    source = FileSource(path=str(corpus / "a.jsonl"), max_records=15)
    settings = {"source": source, "max_bad_frac": 0.5}
    cache = make(corpus, tmp_path / "cache", tokenizer, **settings)
    assert cache.index.tally.records == 15
    assert documents(cache)[-1] == [*tokenizer.encode(TEXTS[11]), tokenizer.end_id]
    stopped = tmp_path / "stopped"
    while (again := make(corpus, stopped, tokenizer, should_stop=lambda: True, **settings)) is None:
        pass
    assert documents(again) == documents(cache)


def test_dialogues_carry_which_ids_count(tmp_path, tokenizer, small):
    turns = [
        [{"role": "user", "content": f"{n}+1"}, {"role": "assistant", "content": str(n + 1)}]
        for n in range(20)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"messages": t}) for t in turns))
    source = FileSource(path=str(tmp_path / "a.jsonl"), content="dialogue")
    cache = make(tmp_path, tmp_path / "cache", tokenizer, source=source, shard_tokens=40)
    assert len(cache.index.shards) > 2
    for number, messages in enumerate(turns):
        ids, mask = encode_dialogue(tokenizer, messages)
        assert cache.ids(number, 0, len(ids)).tolist() == ids
        assert cache.counted(number, 0, len(ids)).tolist() == mask


def test_a_large_vocabulary_takes_wider_ids(corpus, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "vocab_size", 2**16 + 1)
    cache = make(corpus, tmp_path / "cache", tokenizer)
    assert cache.ids(0, 0, 3).dtype == np.uint32


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"] * 3, "at least one document"),
        (['{"body": "x"}'] * 3, "field=NAME"),
        (['{"text": " "}'] * 3, "3 empty"),
        (["{"] * 2 + ['{"text": "x"}'] * 8, "at most 10% bad"),
    ],
)
def test_a_source_that_is_of_no_use_is_an_error(tmp_path, tokenizer, lines, said):
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for _ in range(2):  # the second time it is known from the index
        with pytest.raises(UserError) as error:
            make(tmp_path / "a.jsonl", tmp_path / "cache", tokenizer)
        assert said in str(error.value)


def test_few_bad_records_and_any_number_of_empty_ones_are_skipped(tmp_path, tokenizer):
    lines = ["{"] + ['{"text": " "}'] * 50 + ['{"text": "x"}'] * 20
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    cache = make(tmp_path / "a.jsonl", tmp_path / "cache", tokenizer)
    assert (cache.index.documents, cache.index.tally.skipped) == (20, 51)


def test_a_hopeless_source_is_given_up_early(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(build, "HOPELESS_RECORDS", 100)
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 5000)
    with pytest.raises(UserError) as error:
        make(tmp_path / "a.jsonl", tmp_path / "cache", tokenizer)
    assert error.value.got.startswith("256 records")
    assert list((tmp_path / "cache").iterdir()) == []


def test_damage_is_named_with_what_to_delete(corpus, tmp_path, tokenizer):
    folder = make(corpus, tmp_path / "cache", tokenizer).folder
    ids = folder / "ids-00000.npy"
    ids.write_bytes(ids.read_bytes()[:-8])
    with pytest.raises(UserError, match=f"delete {folder}"):
        make(corpus, tmp_path / "cache", tokenizer)
    (folder / "index.json").write_text("{")
    with pytest.raises(UserError, match="broken index"):
        make(corpus, tmp_path / "cache", tokenizer)


def test_progress_is_told_up_to_the_whole(corpus, tmp_path, tokenizer, small):
    seen = []
    cache = make(corpus, tmp_path / "cache", tokenizer, on_progress=seen.append)
    assert seen[-1].done_frac == 1.0
    assert (seen[-1].documents, seen[-1].tokens) == (cache.index.documents, cache.index.tokens)
    fracs = [building.done_frac for building in seen]
    assert fracs == sorted(fracs) and fracs[0] < 0.2


def test_two_processes_do_not_make_one_cache(corpus, tmp_path, tokenizer):
    folder = make(corpus, tmp_path / "cache", tokenizer, should_stop=lambda: True)
    (folder,) = (tmp_path / "cache").iterdir()
    assert not read_index(folder).is_complete
    with only_writer(folder), pytest.raises(UserError, match="another process"):
        make(corpus, tmp_path / "cache", tokenizer)


def test_a_text_that_turns_bad_leaves_nothing_of_itself(tmp_path, tokenizer, small):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"a line of text\n" * 60 + b"\xff")
    (folder / "b.txt").write_text("whole")
    cache = make(folder, tmp_path / "cache", tokenizer, max_bad_frac=0.5, document_tokens=10**6)
    assert documents(cache) == [[*tokenizer.encode("whole"), tokenizer.end_id]]


def test_progress_goes_on_where_it_was(corpus, tmp_path, tokenizer, small):
    seen = []
    settings = {"on_progress": seen.append, "shard_tokens": 10**6}
    while make(corpus, tmp_path / "cache", tokenizer, should_stop=lambda: True, **settings) is None:
        pass
    fracs = [building.done_frac for building in seen]
    assert len(fracs) > 10 and max(fracs[:-1]) <= 1
    assert all(later > before - 0.2 for before, later in pairwise(fracs))
    assert fracs[-1] == pytest.approx(1.0)
