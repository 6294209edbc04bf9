import json
from pathlib import Path

import pytest

from nalar.config import ConfigError, UserError
from nalar.data import learning
from nalar.data.config import (
    CorpusConfig,
    DataConfig,
    FileSource,
    ProceduralSource,
    TokenizerConfig,
)
from nalar.data.learning import bytes_per_token, draw_samples, learn


@pytest.fixture
def lines(tmp_path: Path) -> FileSource:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"number {n}"}) for n in range(1000)))
    return FileSource(path=str(path))


def test_a_sample_is_drawn_evenly_from_all_of_a_source(lines: FileSource) -> None:
    (sample,) = draw_samples(DataConfig(sources=(lines,)), CorpusConfig(), 200)
    numbers = [int(text.split()[1]) for text in sample.texts]
    assert len(set(numbers)) == 200
    for quarter in range(4):
        assert 25 < sum(n // 250 == quarter for n in numbers) < 75
    assert (sample.tally.records, sample.tally.faults) == (1000, {})
    (again,) = draw_samples(DataConfig(sources=(lines,)), CorpusConfig(), 200)
    assert again == sample


def test_a_small_source_is_taken_whole(lines: FileSource) -> None:
    (sample,) = draw_samples(DataConfig(sources=(lines,)), CorpusConfig(), 5000)
    assert sample.texts == [f"number {n}" for n in range(1000)]
    limited = lines.model_copy(update={"max_records": 10})
    (sample,) = draw_samples(DataConfig(sources=(limited,)), CorpusConfig(), 5000)
    assert sample.texts == [f"number {n}" for n in range(10)]


def test_sources_are_sampled_by_weight(lines: FileSource) -> None:
    sources = (ProceduralSource(weight=1), lines.model_copy(update={"weight": 3.0}))
    procedural, files = draw_samples(DataConfig(sources=sources), CorpusConfig(), 400)
    assert (len(procedural.texts), len(files.texts)) == (100, 300)


def test_a_long_document_counts_as_several(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(learning, "STRETCH_CHARS", 100)
    (tmp_path / "a.txt").write_text("x" * 950)
    source = FileSource(path=str(tmp_path / "a.txt"))
    (sample,) = draw_samples(DataConfig(sources=(source,)), CorpusConfig(), 1000)
    assert "".join(sample.texts) == "x" * 950
    assert max(map(len, sample.texts)) == 100
    (sample,) = draw_samples(DataConfig(sources=(source,)), CorpusConfig(), 3)
    assert len(sample.texts) == 3


def test_of_a_dialogue_what_was_said_is_sampled(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "how"},
        {"role": "assistant", "content": "so", "reasoning_content": "hm"},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    source = FileSource(path=str(tmp_path / "a.jsonl"), content="dialogue")
    (sample,) = draw_samples(DataConfig(sources=(source,)), CorpusConfig(), 3)
    assert sample.texts == ["\nhow\nhm\nso"]


def test_a_tokenizer_is_learned_and_measured(lines: FileSource) -> None:
    samples = draw_samples(DataConfig(sources=(lines,)), CorpusConfig(), 500)
    tokenizer = learn(samples, TokenizerConfig(vocab_size=266))
    assert tokenizer.decode(tokenizer.encode("number")[:1]) == "number"
    ids = sum(len(tokenizer.encode(text)) for text in samples[0].texts)
    assert bytes_per_token(tokenizer, samples) == pytest.approx(
        sum(map(len, samples[0].texts)) / ids
    )


def test_a_corpus_with_too_few_merges_or_too_many_bad_records_is_refused(tmp_path, lines) -> None:
    samples = draw_samples(DataConfig(sources=(lines,)), CorpusConfig(), 500)
    with pytest.raises(ConfigError, match=r"the corpus gave 2\d\d ids"):
        learn(samples, TokenizerConfig(vocab_size=300))
    (tmp_path / "b.jsonl").write_text("{\n" * 5)
    bad = DataConfig(sources=(FileSource(path=str(tmp_path / "b.jsonl")),))
    with pytest.raises(UserError, match="no JSON object"):
        draw_samples(bad, CorpusConfig(), 5)
