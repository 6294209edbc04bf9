import json
from pathlib import Path

import pytest

from nalar.config import UserError
from nalar.data import loader
from nalar.data.config import (
    CorpusConfig,
    DataConfig,
    DatasetSource,
    FileSource,
    PackingConfig,
    ProceduralSource,
)
from nalar.data.loader import load, load_dialogues
from nalar.data.packing import Packing

CORPUS, PACKING = CorpusConfig(), PackingConfig(step_tokens=200, document_tokens=100)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    lines = [json.dumps({"text": f"document {n}"}) for n in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{"]))
    sources = (ProceduralSource(), FileSource(path=str(tmp_path / "a.jsonl"), weight=3))
    return DataConfig(sources=sources, cache_dir=str(tmp_path / "cache"))


def test_what_was_read_is_on_record_and_told(data: DataConfig, tokenizer) -> None:
    notes: list[str] = []
    loaded = load(data, CORPUS, PACKING, tokenizer, 0, note=notes.append)
    assert loaded is not None
    (record,) = loaded.records
    assert (record.weight_frac, record.records, record.documents) == (0.75, 31, 30)
    assert record.skipped["no JSON object"].count == 1
    assert record.tokenizer == tokenizer.fingerprint
    assert Path(record.cache).is_dir() and record.digest
    (note,) = notes
    assert "30 documents" in note and "skipped 1 no JSON object (first: " in note
    assert len(loaded.batches.batch(0).ids_N) == loaded.batches.tokens_per_step == 200


def test_the_seed_sets_the_order(data: DataConfig, tokenizer) -> None:
    one, same, other = (
        load(data, CORPUS, PACKING, tokenizer, seed).batches.batch(0).ids_N[50:].tolist()
        for seed in (0, 0, 1)
    )
    assert one == same != other


def test_the_procedural_corpus_alone_needs_no_cache(tokenizer, tmp_path) -> None:
    data = DataConfig(cache_dir=str(tmp_path / "cache"))
    loaded = load(data, CORPUS, PACKING, tokenizer, 5)
    packing = Packing(tokenizer, CORPUS, PACKING, 5)
    assert loaded.records == []
    for step in (0, 9):
        one, two = loaded.batches.batch(step), packing.batch(step)
        assert one.ids_N.tolist() == two.ids_N.tolist() and one.lengths == two.lengths
    assert not (tmp_path / "cache").exists()


def test_a_stop_is_heard_while_a_cache_is_made(data: DataConfig, tokenizer) -> None:
    assert load(data, CORPUS, PACKING, tokenizer, 0, should_stop=lambda: True) is None
    assert load(data, CORPUS, PACKING, tokenizer, 0) is not None


def test_how_far_it_is_is_told_every_so_often(data: DataConfig, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(loader, "NOTE_EVERY_S", 0.0)
    notes: list[str] = []
    load(data, CORPUS, PACKING, tokenizer, 0, note=notes.append)
    assert "tokenised 30 documents" in notes[0] and "(100%)" in notes[0]


@pytest.fixture
def dialogues(tmp_path: Path) -> FileSource:
    """39 of growing length, the first of them twice."""
    turns = [
        [{"role": "user", "content": "x" * n}, {"role": "assistant", "content": "y"}]
        for n in (5, *range(5, 200, 5))
    ]
    lines = [json.dumps({"messages": t}) for t in turns]
    (tmp_path / "d.jsonl").write_text("\n".join([*lines, '{"messages": []}']))
    return FileSource(path=str(tmp_path / "d.jsonl"), content="dialogue")


def test_dialogues_come_whole_and_count_where_the_assistant_speaks(
    data: DataConfig, tokenizer, dialogues
) -> None:
    notes: list[str] = []
    loaded = load_dialogues(
        dialogues, data, PACKING, tokenizer, 0, held_out_frac=0.0, note=notes.append
    )
    assert loaded.record.left_out > 0 == loaded.record.held_out
    assert f"{loaded.record.left_out} dialogues are too long" in notes[0]
    assert "skipped 1 no turn of the assistant" in notes[0]
    packed = loaded.batches.batch(0)
    assert packed.counted_N.sum() == 2 * len(packed.lengths)  # y and <|end|> of each
    chosen = data.model_copy(update={"sources": (dialogues,)})
    cut = load(chosen, CORPUS, PACKING, tokenizer, 0)
    assert cut.records[0].left_out == 0 and len(cut.batches.batch(0).ids_N) == 200


def documents_of(batches) -> list[tuple[int, ...]]:
    found = []
    for packed in batches:
        at = 0
        for n in packed.lengths:
            found.append((int(packed.ids_N[at]), *packed.targets_N[at : at + n].tolist()))
            at += n
    return found


def test_what_is_held_out_is_never_trained_on_and_follows_from_the_seed(
    data: DataConfig, tokenizer, dialogues
) -> None:
    sides = []
    for seed in (0, 0, 1):
        loaded = load_dialogues(dialogues, data, PACKING, tokenizer, seed, held_out_frac=0.4)
        held = documents_of(loaded.held_out.once(150))
        steps = 2 * loaded.epoch_tokens // PACKING.step_tokens + 1
        trained = documents_of(loaded.batches.batch(step) for step in range(steps))
        assert held and not set(held) & set(trained)
        record = loaded.record
        assert len(held) == record.held_out
        kept = record.documents - record.left_out
        twice = 1 if len(held) != len(set(held)) else 0  # both of the pair are on one side
        assert len(set(held)) + len(set(trained)) == kept - 1
        assert twice or held.count(held[0]) == 1
        sides.append(set(held))
    assert sides[0] == sides[1] != sides[2]


def test_one_pass_over_held_out_dialogues_fits_its_batches(
    data: DataConfig, tokenizer, dialogues
) -> None:
    loaded = load_dialogues(dialogues, data, PACKING, tokenizer, 0, held_out_frac=0.4)
    whole, small = (list(loaded.held_out.once(most)) for most in (10**9, 150))
    assert len(whole) == 1 < len(small)
    assert all(sum(packed.lengths) <= 150 for packed in small)
    assert documents_of(whole) == documents_of(small)
    assert all(len(packed.lengths) == 1 for packed in loaded.held_out.once(1))


@pytest.mark.parametrize(
    ("step", "document", "frac", "words"),
    [
        (50, 5, 0.0, "40 too long and 0 held out"),
        (200, 100, 1 - 1e-9, "too long and [1-9]"),
        (10**5, 100, 0.0, "at least one step an epoch"),
    ],
)
def test_dialogues_of_which_nothing_is_left_are_refused(
    data: DataConfig, tokenizer, dialogues, step, document, frac, words
) -> None:
    packing = PackingConfig(step_tokens=step, document_tokens=document)
    with pytest.raises(UserError, match=words):
        load_dialogues(dialogues, data, packing, tokenizer, 0, held_out_frac=frac)


def test_a_dataset_is_cached_like_files(data: DataConfig, tokenizer, tmp_path) -> None:
    pytest.importorskip("datasets", reason="datasets are read by the package of that name")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(f'{{"text": "row {n}"}}' for n in range(20)))
    source = DatasetSource(id=str(folder), max_records=15)
    loaded = load(data.model_copy(update={"sources": (source,)}), CORPUS, PACKING, tokenizer, 0)
    assert (loaded.records[0].records, loaded.records[0].documents) == (15, 15)


def test_two_sources_are_not_read_in_one_order(data: DataConfig, tokenizer, tmp_path) -> None:
    one = FileSource(path=str(tmp_path / "a.jsonl"))
    loaded = load(data.model_copy(update={"sources": (one, one)}), CORPUS, PACKING, tokenizer, 0)
    ids = loaded.batches.batch(0).ids_N.tolist()
    assert ids[:100] != ids[100:]
