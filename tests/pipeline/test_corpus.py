"""A base model of one's own corpus: what it reads, and that stopping anywhere changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nalar.config import UserError
from nalar.data.config import (
    CorpusConfig,
    DataConfig,
    FileSource,
    ProceduralSource,
    TokenizerConfig,
)
from nalar.data.learning import draw_samples, learn
from nalar.data.tokenizer import Tokenizer
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.corpus import named_or_learned, processes_ahead
from nalar.pipeline.zero import Outcome
from nalar.recipes.registry import RECIPES

STEPS = 40


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "tales.jsonl"
    tales = [f"tale {n}: once there was a {n % 7}-headed hen in {n} hats" for n in range(300)]
    path.write_text("\n".join(json.dumps({"text": tale}) for tale in tales))
    return path


@pytest.fixture
def own(shrunk: ZeroConfig, corpus: Path, tmp_path: Path) -> ZeroConfig:
    """The shrunk recipe on a file and the procedural corpus, half and half, without a probe."""
    sources = (FileSource(path=str(corpus)), ProceduralSource())
    data = DataConfig(sources=sources, cache_dir=str(tmp_path / "cache"))
    return shrunk.model_copy(update={"data": data, "probe": None})


def weights(run, name: str = f"pretrain-{STEPS:06d}") -> dict[str, torch.Tensor]:
    return load_file(run.path / "checkpoints" / name / "model.safetensors")


def is_same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_without_a_probe_every_slice_is_trained(own, work, recorder) -> None:
    run = work.create("a", own)
    assert work.go(run, until="pretrain", observer=recorder) is Outcome.FINISHED
    assert recorder.finished == ["data", "pretrain"]
    assert not (run.path / "probe.json").exists()
    losses = [m.values["loss"] for m in run.metrics("pretrain")]
    assert len(losses) == STEPS // own.pretrain.log_every_steps
    assert losses[-1] < 0.7 * losses[0]
    (source,) = run.read_json("data.json")["sources"]
    assert (source["documents"], source["weight_frac"]) == (300, 0.5)
    assert any("300 documents" in note for note in recorder.notes)
    assert [receipt.name for receipt in run.stage_totals()] == ["data", "pretrain"]


def test_documents_are_made_ahead_on_a_gpu_and_where_it_is_asked_for(shrunk, monkeypatch) -> None:
    def asked(count):
        pretrain = shrunk.pretrain.model_copy(update={"prefetch_processes": count})
        return shrunk.model_copy(update={"pretrain": pretrain})

    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert processes_ahead(shrunk, "cpu") == 0 and processes_ahead(shrunk, "cuda") == 4
    assert processes_ahead(asked(0), "cuda") == 0 and processes_ahead(asked(3), "cpu") == 3
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert processes_ahead(shrunk, "cuda") == 0


@pytest.mark.slow
def test_stopping_in_the_cache_or_in_training_changes_no_bit(own, work) -> None:
    """Nor does a process that makes documents ahead."""
    pretrain = own.pretrain.model_copy(update={"prefetch_processes": 1})
    whole = work.create("whole", own.model_copy(update={"pretrain": pretrain}))
    assert work.go(whole, until="pretrain") is Outcome.FINISHED
    data = own.data.model_copy(update={"cache_dir": str(work.root / "another")})
    cut = work.create("cut", own.model_copy(update={"data": data}))
    seen = []
    for questions in (0, 1, 9):  # within the cache, before the first step, within the first slice
        asked = iter(range(1000))
        stop = lambda asked=asked, last=questions: next(asked) >= last  # noqa: E731
        assert work.go(cut, until="pretrain", should_stop=stop) is Outcome.STOPPED
        seen.append(((cut.path / "data.json").exists(), (cut.path / "model").exists()))
    assert seen == [(False, False), (True, True), (True, True)]
    assert work.go(cut, until="pretrain") is Outcome.FINISHED
    assert is_same(weights(whole), weights(cut))


def test_a_corpus_that_changed_is_not_trained_on_by_a_run_that_goes_on(own, corpus, work) -> None:
    run = work.create("a", own)
    asked = iter(range(100))
    stop_late = lambda: next(asked) > 8  # noqa: E731
    assert work.go(run, until="pretrain", should_stop=stop_late) is Outcome.STOPPED
    text = corpus.read_text()
    corpus.write_text(text.replace("hats", "cats"))
    with pytest.raises(UserError, match="other documents than the run began with"):
        work.go(run, until="pretrain")
    corpus.write_text(text)  # with another time, but the same documents
    assert work.go(run, until="pretrain") is Outcome.FINISHED


def tokenizer_of(corpus: Path, size: int, folder: Path) -> Path:
    data = DataConfig(sources=(FileSource(path=str(corpus)),))
    config = TokenizerConfig(vocab_size=size)
    learn(draw_samples(data, CorpusConfig(), 300), config).save(folder)
    return folder


def with_tokenizer(config: ZeroConfig, folder: Path) -> ZeroConfig:
    named = config.tokenizer.model_copy(update={"path": str(folder)})
    return config.model_copy(update={"tokenizer": named})


def test_a_tokenizer_of_ones_own_is_used_as_it_is(own, corpus, work, tmp_path) -> None:
    folder = tokenizer_of(corpus, 266, tmp_path / "made")
    run = work.create("a", with_tokenizer(own, folder))
    assert work.go(run, until="pretrain", should_stop=lambda: (run.path / "data.json").exists())
    made = Tokenizer.load(folder)
    assert run.read_json("data.json")["sources"][0]["tokenizer"] == made.fingerprint
    assert Tokenizer.load(run.model_dir()).fingerprint == made.fingerprint


def test_a_tokenizer_that_does_not_match_is_an_error(own, corpus, work, tmp_path) -> None:
    small = tokenizer_of(corpus, 264, tmp_path / "small")
    with pytest.raises(UserError, match="a tokenizer of 264 ids"):
        named_or_learned(with_tokenizer(own, small))
    folder = tokenizer_of(corpus, 266, tmp_path / "made")
    run = work.create("a", with_tokenizer(own, folder))
    asked = iter(range(100))
    assert work.go(run, until="pretrain", should_stop=lambda: next(asked) > 8) is Outcome.STOPPED
    (tmp_path / "other.jsonl").write_text('{"text": "quite another text, quite another"}')
    tokenizer_of(tmp_path / "other.jsonl", 266, folder)
    with pytest.raises(UserError, match="another tokenizer than the checkpoint's"):
        work.go(run, until="pretrain")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()  # the checkpoint has its own
    assert work.go(run, until="pretrain") is Outcome.FINISHED


def test_a_config_from_before_there_were_sources_means_the_procedural_corpus() -> None:
    old = RECIPES["zero-cpu"]().model_dump(mode="json")
    del old["data"], old["tokenizer"]["path"], old["tokenizer"]["signs_apart"]
    assert ZeroConfig.model_validate(old) == RECIPES["zero-cpu"]()
