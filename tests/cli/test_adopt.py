import json
import runpy
import shutil
from pathlib import Path

import pytest

from nalar.data.tokenizer import Tokenizer
from nalar.model.weights import read_config

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "tiny_qwen.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder as published, as the cookbook's reader has it."""
    folder = tmp_path_factory.mktemp("made")
    runpy.run_path(str(EXAMPLE))["write"](folder / "qwen")
    return folder / "qwen"


@pytest.fixture
def published(made, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, tmp_path / "qwen")).relative_to(tmp_path)


def test_a_copy_is_written_and_described(published, nalar_):
    dry = nalar_("adopt", "qwen", "ready", "--json", "--dry-run")
    assert not Path("ready").exists()
    called = nalar_("adopt", "qwen", "ready", "--json")
    assert called.code == 0, called.err
    found, tokenizer = called.document, Tokenizer.load(Path("ready"))
    assert found == dry.document
    assert (found["folder"], found["renamed"]) == ("ready", {"<|end|>": "<|im_end|>"})
    marks = {
        "<|user|>": tokenizer.user_id,
        "<|assistant|>": tokenizer.assistant_id,
        "<think>": tokenizer.think_id,
        "</think>": tokenizer.end_think_id,
    }
    assert found["added"] == marks
    assert found["vocab_size"] == tokenizer.vocab_size
    assert found["rows"] == read_config(Path("ready")).vocab_size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope", "ready"], "no such folder"),
        (["qwen", "qwen"], "something that is there already"),
        (["qwen"], "TARGET"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(published, nalar_, words, said):
    called = nalar_("adopt", *words, "--json")
    assert called.code == 2
    assert said in called.err + json.dumps(called.document)
    assert "Traceback" not in called.err
    assert not Path("ready").exists()


def test_what_is_ready_is_not_adopted_again(published, nalar_):
    assert nalar_("adopt", "qwen", "ready").code == 0
    again = nalar_("adopt", "ready", "more", "--json")
    assert again.code == 2 and "--model takes it" in again.document["error"]["hint"]


@pytest.mark.parametrize(
    "words",
    [
        ["rl", "--model", "qwen", "--task", "chain_sum", "--dry-run"],
        ["sft", "--model", "qwen", "--data", "d.jsonl", "--dry-run"],
        ["collect", "--model", "qwen", "--tasks", "chain_sum", "--dry-run"],
        ["reward", "--kind", "safety", "--model", "qwen", "--dry-run"],
        ["eval", "qwen", "--task", "chain_sum", "--problems", "2"],
        ["chat", "qwen", "--prompt", "1+1"],
    ],
)
def test_other_verbs_say_that_it_is_to_be_adopted(published, nalar_, words):
    Path("d.jsonl").write_text('{"messages": []}\n')
    called = nalar_(*words, "--json")
    assert called.code == 2
    assert "nalar adopt" in called.document["error"]["hint"]
