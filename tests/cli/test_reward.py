"""`nalar reward` on the command line: a run, its documents, its errors."""

import json

import pytest

from nalar.cli.main import main
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model

SMALL = [
    "--threads",
    "1",
    "--device",
    "cpu",
    "--max-tokens",
    "48",
    "--pairs-per-step",
    "8",
    "--held-out-frac",
    "0.2",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place with a base and pairs in it."""
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.train(["say ta no 12"] * 4, TokenizerConfig(vocab_size=262))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
        max_position_embeddings=64,
    )
    model = Transformer(config)
    model.initialize(seed=0)
    (tmp_path / "base").mkdir()
    save_model(model, tmp_path / "base", token_ids={"eos_token_id": tokenizer.end_id})
    tokenizer.save(tmp_path / "base")
    lines = [
        json.dumps({"prompt": f"say {n}", "chosen": "ta", "rejected": "no"}) for n in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    return tmp_path


def reward(*words):
    return main(["reward", "--kind", "preference", "--model", "base", *SMALL, *words])


def test_a_run_prints_its_test_as_table_and_document_and_goes_on_only_where_it_may(folder, capsys):
    assert reward("--data", "pairs.jsonl", "--run", "liked", "--json") == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["outcome"] == "finished" and document["report"] is None
    assert document["reward"] == json.loads((folder / "runs/liked/reward.json").read_text())
    for shown in ("accuracy", "order", "length", "calibration", "rl.reward.preference-model"):
        assert shown in err
    assert main(["runs", "show", "liked", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in shown["stages"]] == ["data", "reward", "reward_test"]
    assert main(["reward", "--run", "liked", "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reward"] == document["reward"]
    assert main(["reward", "--run", "liked", "--resume", "--lr", "0.5"]) == 2
    assert "lr" in capsys.readouterr().err
    # the run by its name, where a model that scores is wanted
    rl = ["rl", "--model", "base", "--task", "chain_sum", "--rl.max-tokens", "8", "--dry-run"]
    rl += ["--evals.max-tokens", "8", "--max-prompt-tokens", "48", "--device", "cpu", "--json"]
    named = ["--rl.reward.preference", "0.5", "--rl.reward.preference-model", "liked"]
    assert main([*rl, *named]) == 0, capsys.readouterr().err
    config = json.loads(capsys.readouterr().out)["config"]
    assert config["rl"]["reward"]["preference_model"].startswith(
        str(folder / "runs/liked/checkpoints")
    )
    assert main([*rl, "--rl.reward.preference", "0.5"]) == 2
    assert "no model with rl.reward.preference=0.5" in capsys.readouterr().err
    # and not where one is wanted that predicts tokens
    assert main(["rl", "--model", "liked", "--task", "chain_sum", "--dry-run"]) == 2
    assert "a model that scores" in capsys.readouterr().err
    assert main(["chat", "liked", "--prompt", "1"]) == 2
    assert "a model that scores" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(folder, capsys):
    assert reward("--data", "pairs.jsonl", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in plan["forecast"]["stages"]] == ["reward", "reward_test"]
    assert not (folder / "runs").exists()


def test_bad_input_is_refused_with_its_place(folder, capsys):
    (folder / "bad.jsonl").write_text('{"prompt": "x", "chosen": "y"}\n')
    assert reward("--data", "bad.jsonl") == 2
    assert "bad.jsonl, line 1: got no rejected" in capsys.readouterr().err
    assert reward("--data", "none.jsonl") == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert reward("--data", "procedural", "--tasks", "countdown") == 2
    assert "gives good and bad answers" in capsys.readouterr().err
    assert main(["reward", "--model", "base", "--data", "pairs.jsonl"]) == 2
    assert "--kind" in capsys.readouterr().err
    assert not (folder / "runs").exists()
