"""`nalar sft` from the command line, on a model that takes no time."""

import json
from pathlib import Path

import pytest

from nalar.cli import drive
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model
from nalar.pipeline.preflight import Machine

FLAGS = (
    *("--packing.step-tokens", "128", "--packing.document-tokens", "64", "--epochs", "1"),
    *("--log-every-steps", "1", "--threads", "1", "--device", "cpu", "--cache-dir", "cache"),
)
RL_SIZES = (
    *("--max-prompt-tokens", "40", "--rl.max-tokens", "8", "--evals.max-tokens", "8"),
    *("--threads", "1", "--device", "cpu"),
)


@pytest.fixture
def here(monkeypatch, tmp_path) -> Path:
    """A folder with a model and dialogues in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drive, "this_machine", lambda root: Machine(8, 10**11, 10**12))
    tokenizer = Tokenizer.train(["say 1 is 2"] * 4, TokenizerConfig(vocab_size=262))
    config = ModelConfig(
        vocab_size=262,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        max_position_embeddings=128,
    )
    model = Transformer(config)
    model.initialize(seed=0)
    (tmp_path / "base").mkdir()
    save_model(model, tmp_path / "base", token_ids={"eos_token_id": tokenizer.end_id})
    tokenizer.save(tmp_path / "base")
    turns = [
        [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}"}]
        for n in range(60)
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"messages": t}) for t in turns))
    return tmp_path


def test_sft_from_start_to_a_model_that_can_be_asked(here, nalar_):
    called = nalar_("sft", "--model", "base", "--data", "d.jsonl", "--run", "a", *FLAGS, "--json")
    assert called.code == 0, called.err
    document = called.document
    assert (document["run"], document["outcome"]) == ("runs/a", "finished")
    held_out = document["report"]["held_out"]
    assert held_out["after"]["loss"] < held_out["before"]["loss"]
    assert document["report"]["is_complete"]
    assert "went from" in called.err and "Fine-tuning" in called.err
    stored = json.loads(Path("runs/a/run.json").read_text())["config"]
    assert stored["model"] == str(here / "base") and stored["device"] == "cpu"

    assert nalar_("sft", "--run", "a", "--resume", "--json").document["outcome"] == "finished"
    again = nalar_("sft", "--run", "a", "--resume", "--lr", "0.5", "--json")
    assert again.code == 2 and "lr" in again.document["error"]["at"]
    said = nalar_("chat", "a", "--prompt", "say 5", "--max-tokens", "4", "--json")
    assert said.document["tokens"] <= 4
    assert "went from" in nalar_("report", "a").out
    assert nalar_("runs", "show", "a", "--json").document["report"]["held_out"] == held_out
    assert nalar_("runs", "plot", "a", "--out", "p.svg").code == 0
    more = nalar_("sft", "--model", "a", "--data", "d.jsonl", "--dry-run", "--json", *FLAGS)
    assert more.document["config"]["model"].startswith(str(here / "runs" / "a" / "checkpoints"))
    for verb in (("rl", "a"), ("demo", "--run", "a", "--resume")):
        error = nalar_(*verb, "--json").document["error"]
        assert error["got"] == "a run of `nalar sft`" and "nalar sft --run" in error["hint"]


@pytest.mark.parametrize("verb", [("sft", "--dry-run"), ("plan", "sft")])
def test_a_plan_writes_nothing(verb, here, nalar_):
    before = sorted(here.rglob("*"))
    called = nalar_(*verb, "--model", "base", "--data", "d.jsonl", *FLAGS, "--json")
    assert called.code == 0, called.err
    assert [stage["name"] for stage in called.document["forecast"]["stages"]] == ["sft"]
    assert called.document["forecast"]["tokens"] > 100
    assert called.document["config"]["epochs"] == 1
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "at"),
    [
        (("--data", "d.jsonl"), "nalar sft"),
        (("--model", "nope", "--data", "d.jsonl"), "runs/nope"),
        (("--model", "base", "--data", "nope.jsonl"), "nope.jsonl"),
        (("--model", "base", "--data", "procedural"), "data"),
        (("--model", "base", "--data", "d.jsonl", "--device", "cuda"), "device"),
        (("--model", "base", "--data", "d.jsonl", "--epochs", "0"), "epochs"),
        (("--model", "base", "--data", "base/chat_template.jinja,format=text"), "base"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(flags, at, here, nalar_, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for dry in ([], ["--dry-run"]):
        called = nalar_("sft", *flags, *dry, "--json")
        assert called.code == 2, called.err
        assert at in called.document["error"]["at"]
    assert not (here / "runs").exists()


@pytest.mark.parametrize("verb", ["sft", "rl"])
def test_weights_that_do_not_fit_are_refused_before_anything_is_written(verb, here, nalar_):
    weights = here / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    on = ["--data", "d.jsonl", *FLAGS] if verb == "sft" else ["--task", "chain_sum", *RL_SIZES]
    called = nalar_(verb, "--model", "base", *on, "--json")
    assert called.code == 2 and "model.safetensors" in called.document["error"]["at"]
    assert not (here / "runs").exists()


def test_a_run_of_a_recipe_is_not_fine_tuned_by_going_on(here, nalar_):
    from nalar.run import Run

    Run.create(here / "runs", "z", nalar_("plan", "--json").document["config"], "nalar", 0)
    error = nalar_("sft", "--run", "z", "--resume", "--json").document["error"]
    assert error["got"] == "a run of a recipe"
