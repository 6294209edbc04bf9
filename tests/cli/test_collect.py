"""`nalar collect` on the command line: what it is told, what it refuses, what it says at the end."""

import json
from pathlib import Path

import pytest

from nalar.cli import collect as verb
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model
from nalar.pipeline import collect as pipeline_collect
from nalar.pipeline.collect_config import CollectConfig
from nalar.pipeline.state import Outcome
from nalar.recipes.zero import zero_tiny
from nalar.run import Run

FLAGS = ("--tasks", "chain_sum", "--device", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    tokenizer = Tokenizer.train(["1+2-3"] * 4, TokenizerConfig(vocab_size=262))
    shape = {"vocab_size": 262, "hidden_size": 16, "num_hidden_layers": 1, "kv_lora_rank": 8}
    model = Transformer(zero_tiny().model.model_copy(update=shape | {"first_k_dense_replace": 1}))
    model.initialize(seed=0)
    path = tmp_path_factory.mktemp("model")
    save_model(model, path, token_ids={"eos_token_id": tokenizer.end_id})
    tokenizer.save(path)
    return str(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_says_what_it_takes_and_writes_nothing(nalar_, model, here):
    found = nalar_("collect", "--model", model, *FLAGS, "--dry-run", "--json")
    assert found.code == 0
    assert [stage["name"] for stage in found.document["forecast"]["stages"]] == ["collect"]
    assert found.document["config"]["tasks"] == ["chain_sum"]
    assert found.document["run"] == "runs/collect-1" and list(here.iterdir()) == []


def test_several_tasks_may_stand_behind_one_flag_or_several(nalar_, model, here):
    more = ("--tasks", "arithmetic", "countdown,num_numbers=3")
    found = nalar_("collect", "--model", model, *FLAGS, *more, "--dry-run", "--json")
    assert found.document["config"]["tasks"] == [
        "chain_sum",
        "arithmetic",
        "countdown,num_numbers=3",
    ]


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (("--tasks", "chain_sum"), "--model"),
        (("--model", "MODEL"), "--tasks"),
        (("--model", "MODEL", *FLAGS, "--judge-url", "http://x/v1"), "--judge-url"),
        (("--model", "MODEL", *FLAGS, "--rewrite", "judge"), "rewriter"),
        (("--model", "MODEL", *FLAGS, "--rewrite", "rule"), "filters.language"),
        (("--model", "MODEL", *FLAGS, "--samples", "0"), "samples"),
        (("--model", "nothing-here", *FLAGS), "runs/nothing-here"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(nalar_, model, here, words, at):
    found = nalar_("collect", *(model if word == "MODEL" else word for word in words), "--json")
    assert (found.code, found.document["error"]["at"]) == (2, at)
    assert list(here.iterdir()) == []


def test_a_model_that_answers_nothing_is_told_with_the_stage(nalar_, model, here):
    few = ("--problems-per-task", "2", "--samples", "2", "--max-tokens", "4", "--run", "cold")
    found = nalar_("collect", "--model", model, *FLAGS, *few, "--json")
    assert (found.code, found.document["error"]["at"]) == (2, "stage cold: filters")
    assert "nalar collect --run runs/cold --resume" in found.err
    assert not (here / "runs" / "cold" / "dataset.jsonl").exists()


def test_at_the_end_it_says_what_is_in_it_and_what_to_do_with_it(nalar_, model, here, monkeypatch):
    def done(config: CollectConfig, run: Run, observer, should_stop):
        assert config.rewriter is not None and config.rewriter.endpoint.model == "scribe"
        run.write_json("collect.json", {"lines": 3})
        return Outcome.FINISHED

    monkeypatch.setattr(pipeline_collect, "run_collect", done)
    monkeypatch.setenv("SCRIBE_KEY", "k")
    judge = ("--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "scribe")
    words = ("--model", model, *FLAGS, *judge, "--judge-key-env", "SCRIBE_KEY", "--run", "good")
    found = nalar_("collect", *words, "--json")
    assert found.code == 0 and found.document["outcome"] == "finished"
    assert found.document["collected"] == {"lines": 3}
    assert "--data runs/good/dataset.jsonl" in found.err
    assert json.loads(Path("runs/good/run.json").read_text())["config"]["rewrite"] == "judge"
    shown = nalar_("runs", "show", "good", "--json")
    assert shown.code == 0


def test_nothing_asked_is_no_config_of_anybody():
    assert verb.NOTHING_ASKED.model == ""
