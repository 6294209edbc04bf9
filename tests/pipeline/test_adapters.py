"""Runs that train adapters: SFT and RL, stopped anywhere and gone on to the bit; what cannot work is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nalar.config import ConfigError, UserError
from nalar.data.config import FileSource
from nalar.model.adapter_folder import load_adapted
from nalar.model.config import LoraConfig
from nalar.model.weights import load_model
from nalar.pipeline.config import RlRunConfig, SftConfig
from nalar.pipeline.rl import plan_rl
from nalar.pipeline.sampler import load_sampler
from nalar.pipeline.sft import plan_sft
from nalar.pipeline.state import Outcome

LORA = {"r": 2, "lora_alpha": 8.0}


@pytest.fixture(scope="module")
def bases(make_base) -> dict[str, Path]:
    return {kind: make_base(kind) for kind in ("latent", "grouped")}


@pytest.fixture(scope="module")
def files(tmp_path_factory, even_task) -> Path:
    """Dialogues to fine-tune on, and a task of one's own."""
    folder = tmp_path_factory.mktemp("files")
    dialogues = [
        [
            {"role": "user", "content": f"say {n}"},
            {"role": "assistant", "reasoning_content": "ab", "content": "is it"},
        ]
        for n in range(60)
    ]
    lines = [json.dumps({"messages": messages}) for messages in dialogues]
    (folder / "d.jsonl").write_text("\n".join(lines))
    (folder / "even.py").write_text(even_task)
    return folder


@pytest.fixture(scope="module")
def make_sft(bases, files):
    def make(base: str | Path = "latent", **changes) -> SftConfig:
        settings = {
            "threads": 1,
            "device": "cpu",
            "model": str(bases.get(base, base)),
            "lora": LORA,
            "data": FileSource(path=str(files / "d.jsonl")),
            "cache_dir": str(files / "cache"),
            "packing": {"step_tokens": 256, "document_tokens": 64},
            "held_out_frac": 0.2,
            "epochs": 3,
            "lr": 0.02,
            "log_every_steps": 1,
            "save_every_steps": 2,
        }
        return SftConfig.model_validate(settings | changes)

    return make


@pytest.fixture(scope="module")
def make_rl(bases, files):
    def make(base: str | Path = "latent", *, rl=None, **changes) -> RlRunConfig:
        tasks = (str(files / "even.py"),)
        settings = {
            "threads": 1,
            "device": "cpu",
            "model": str(bases.get(base, base)),
            "lora": LORA,
            "rl": {
                "steps": 4,
                "tasks": tasks,
                "prompts_per_step": 4,
                "group_size": 4,
                "max_tokens": 12,
                "save_every_steps": 2,
                "lr": 5e-3,
                # An answer that nobody has taught is rare: the shorter response is paid, so that there is a gradient.
                "objective": {"entropy_coef": 0.1},
                "rollout": {"save_every_steps": 1},
            }
            | (rl or {}),
            "evals": {"tasks": tasks, "problems": 4, "k": 2, "max_tokens": 12},
        }
        return RlRunConfig.model_validate(settings | changes)

    return make


@pytest.fixture
def go(tmp_path, make_go):
    return make_go(tmp_path / "runs")


@pytest.fixture(scope="module")
def tuned(make_sft, make_go, tmp_path_factory):
    """Fine-tuned by adapters, one run a family."""
    go, found = make_go(tmp_path_factory.mktemp("tuned")), {}
    for kind in ("latent", "grouped"):
        found[kind] = go.create(kind, make_sft(kind))
        assert go.on(found[kind]) is Outcome.FINISHED
    return found


@pytest.fixture(scope="module")
def played(make_rl, make_go, tmp_path_factory):
    """RL by adapters."""
    go = make_go(tmp_path_factory.mktemp("played"))
    run = go.create("latent", make_rl())
    assert go.on(run) is Outcome.FINISHED
    return run


@pytest.mark.parametrize("kind", ["latent", "grouped"])
def test_adapters_learn_dialogues_and_nothing_else_moves(kind, tuned, bases):
    run = tuned[kind]
    before, after = (run.read_json(f"held_out_{when}.json")["loss"] for when in ("before", "after"))
    assert after < before - 1
    base, merged = (
        load_file(bases[kind] / "model.safetensors"),
        load_file(run.path / "model" / "model.safetensors"),
    )
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed and all("_proj" in name and ".experts." not in name for name in changed)
    adapters = load_file(run.path / "model" / "adapter" / "adapter_model.safetensors")
    assert changed == {
        key.removeprefix("base_model.model.").replace("lora_A.", "")
        for key in adapters
        if "lora_A" in key
    }


@pytest.mark.parametrize("kind", ["latent", "grouped"])
def test_a_checkpoint_is_a_whole_model_with_its_adapter_beside_it(kind, tuned, bases):
    folder = (tuned[kind].path / "model").resolve()
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bases[kind])
    assert (config["r"], config["lora_alpha"]) == (2, 8.0)
    merged = load_model(folder)
    grown = load_adapted(bases[kind], folder / "adapter", device="cpu", dtype=torch.float32)
    own = merged.state_dict()
    assert all(torch.equal(x, own[name]) for name, x in grown.state_dict().items() if name in own)
    state = load_file(folder / "state" / "optimizer.safetensors")
    numbers = sum(p.numel() for _, p in grown.trained_parameters(ahead=False))
    assert sum(x.numel() for key, x in state.items() if key.startswith("adamw")) == 2 * numbers
    assert not [key for key in state if key.startswith(("muon", "master"))]
    assert load_sampler(tuned[kind].model_dir()).engine is not None


@pytest.mark.parametrize("at", [("held_out_before", 1), ("sft", 3)])
def test_fine_tuning_that_was_interrupted_ends_the_same_to_the_bit(at, make_sft, tuned, go):
    run = go.create("latent", make_sft())
    go.interrupted(run, at)
    assert go.on(run) is Outcome.FINISHED
    assert go.kept(run) == go.kept(tuned["latent"]) and len(go.kept(run)) > 20


@pytest.mark.slow
def test_rl_that_was_interrupted_ends_the_same_to_the_bit(make_rl, played, go):
    run = go.create("latent", make_rl())
    go.interrupted(run, ("rl", 3))
    assert go.on(run) is Outcome.FINISHED
    assert go.kept(run) == go.kept(played) and len(go.kept(run)) > 20


def test_rl_samples_from_the_weights_that_it_trains(played, bases):
    metrics = played.metrics("rl")
    assert all(line.values["first_log_ratio_rms"] < 1e-5 for line in metrics)
    assert metrics[-1].values["grad_norm"] > 0
    base = load_file(bases["latent"] / "model.safetensors")
    merged = load_file(played.path / "model" / "model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    # The balance of the routers too stays as the base has it: an adapter could not carry it.
    assert changed and all("_proj" in name and ".experts." not in name for name in changed)


@pytest.mark.slow
def test_the_reference_of_adapters_keeps_what_moves_and_comes_back(make_rl, go):
    rl = {"kl": {"coef": 0.05, "refresh_every_steps": 2}, "save_every_steps": 3}
    whole, run = go.create("whole", make_rl(rl=rl)), go.create("run", make_rl(rl=rl))
    assert go.on(whole) is Outcome.FINISHED
    go.interrupted(run, ("rl", 4))
    assert go.on(run) is Outcome.FINISHED
    assert go.kept(run) == go.kept(whole)
    folder = (whole.path / "model").resolve()
    reference = load_file(folder / "state" / "reference.safetensors")
    assert {name.rpartition(".")[2] for name in reference} == {"weight", "lora_A", "lora_B"}
    assert not [
        name
        for name in reference
        if "embed" in name or "experts." in name.replace("shared_experts.", "")
    ]


def test_an_adapter_that_is_there_is_gone_on_with(make_sft, tuned, bases, go):
    adapter = (tuned["grouped"].path / "model" / "adapter").resolve()
    config = make_sft("grouped", lora=LORA | {"adapter": str(adapter)}, epochs=1, lr=1e-6)
    run = go.create("more", config)
    assert go.on(run) is Outcome.FINISHED
    before, after = (run.read_json(f"held_out_{when}.json")["loss"] for when in ("before", "after"))
    assert after < before - 1  # it began where the other had ended
    assert after == pytest.approx(
        tuned["grouped"].read_json("held_out_after.json")["loss"], abs=0.01
    )


def test_a_base_that_changed_or_went_is_refused(make_base, make_sft, go, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(make_base("grouped"), base)
    run, asked = go.create("run", make_sft(base)), iter([False] * 4 + [True] * 99)
    assert go.on(run, should_stop=lambda: next(asked)) is Outcome.STOPPED
    shutil.copy(make_base("grouped", seed=1) / "model.safetensors", base)
    with pytest.raises(UserError, match="another model than the run began with"):
        go.on(run)
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"config\.json: No such file"):
        go.on(run)


def test_a_damaged_adapter_is_a_damaged_checkpoint(make_sft, tuned, go):
    run = go.create("latent", make_sft())
    go.interrupted(run, ("sft", 6))
    newest = max((run.path / "checkpoints").glob("sft-*"))
    path = newest / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert go.on(run) is Outcome.FINISHED
    assert list((run.path / "checkpoints").glob("*.damaged"))
    ours = {name: data for name, data in go.kept(run).items() if ".damaged" not in name}
    assert ours == go.kept(tuned["latent"])


def test_what_cannot_be_adapted_is_refused_before_anything_is_written(make_sft, make_rl, tmp_path):
    with pytest.raises(ConfigError, match=r"k_proj.*\n.*kv_b_proj"):
        plan_sft(make_sft(lora={"target_modules": ("k_proj",)}))
    with pytest.raises(ConfigError, match=r"lora\.target_modules"):
        plan_rl(make_rl("grouped", lora={"target_modules": ("embed_tokens",)}))
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        plan_sft(make_sft(lora={"adapter": str(tmp_path)}))
    with pytest.raises(ConfigError, match="mtp_loss_weight"):
        make_sft(mtp_loss_weight=0.3)


def test_a_forecast_knows_adapters(make_sft, make_rl):
    whole, small = plan_sft(make_sft(lora=None)), plan_sft(make_sft())
    assert whole.trained_params == whole.total_params == small.total_params
    assert 0 < small.trained_params < small.total_params / 5
    assert 0.6 < small.stages[0].flops / whole.stages[0].flops < 0.8  # no gradients of weights
    assert small.disk_bytes < whole.disk_bytes
    larger = plan_rl(make_rl(lora=LoraConfig(r=8).model_dump()))
    assert larger.trained_params == 4 * plan_rl(make_rl()).trained_params


def test_a_bill_counts_what_adapters_take(tuned, make_sft, go):
    run = go.create("whole", make_sft(lora=None))
    assert go.on(run) is Outcome.FINISHED
    totals = [r.stage_total("sft") for r in (run, tuned["latent"])]
    assert totals[0].tokens == totals[1].tokens
    assert 0.6 < totals[1].flops / totals[0].flops < 0.8
