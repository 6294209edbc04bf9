"""Adapters on whole models: nothing at first, exact gradients, one weight for trainer and sampler, PEFT's files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from nalar.config import ConfigError, UserError
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Request, SamplingParams
from nalar.model.adapter_folder import load_adapted, load_adapter, read_lora, save_adapter
from nalar.model.compiled import CompiledBlocks
from nalar.model.config import LoraConfig
from nalar.model.families.adapters import adapted, target_names
from nalar.model.lora import adapt, adapted_layers, fold, lasting
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, save_model
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip

LORA = LoraConfig(r=3, lora_alpha=6.0)
IDS = torch.tensor([5, 17, 3, 80, 41, 9, 9, 60])
EVERY = pytest.mark.parametrize(
    "model",
    ["deepseek_v3", "deepseek_v3-moonlight", "qwen2", "qwen3_moe", "llama-biases", "granitemoe"],
    indirect=True,
)
BOTH = pytest.mark.parametrize("model", ["deepseek_v3", "qwen2"], indirect=True)
"""Latent and grouped-query attention."""


@pytest.fixture
def model(request, tiny_families, random_model) -> Transformer:
    return random_model(tiny_families[request.param])


def loss_of(model: Transformer) -> torch.Tensor:
    logits = model.logits(model(IDS[None, :-1]).states)
    return torch.nn.functional.cross_entropy(logits[0], IDS[1:])


def learn(model: Transformer, steps: int = 2, lr: float = 0.05) -> MuonClip:
    """Far enough that B is not 0 and the sampler has something to differ in."""
    optimizer = MuonClip(
        model.trained_parameters(ahead=False),
        OptimConfig(name="adamw", lr=lr, adamw_lr=lr, weight_decay=0.0, skip_spikes=False),
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        fold(model)
    return optimizer


@EVERY
def test_new_adapters_change_nothing_to_the_bit(model):
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with torch.no_grad():
        sampled = model(IDS[None]).states
    trained = model(IDS[None]).states
    adapt(model, LORA, base="base", seed=0)
    assert torch.equal(model(IDS[None]).states, trained)
    with torch.no_grad():
        assert torch.equal(model(IDS[None]).states, sampled)
    fold(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert {name.rpartition(".")[2] for name in after.keys() - before.keys()} == {
        "lora_A",
        "lora_B",
    }


@EVERY
def test_gradients_are_autograds_through_base_and_adapter(model):
    plain_state = {name: x.clone() for name, x in model.state_dict().items()}
    plain = Transformer(model.config)
    plain.load_state_dict(plain_state)
    adapt(model, LORA, base="base", seed=0)
    layers = dict(adapted_layers(model))
    gen = torch.Generator().manual_seed(1)
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.1, generator=gen)
    fold(model)
    loss = loss_of(model)
    loss.backward()
    leaves = {
        name: [p.detach().clone().requires_grad_() for p in (layer.lora_A, layer.lora_B)]
        for name, layer in layers.items()
    }
    weights = {
        f"{name}.weight": plain_state[f"{name}.weight"] + LORA.scaling * up @ down
        for name, (down, up) in leaves.items()
    }
    hidden = torch.func.functional_call(plain, weights, (IDS[None, :-1],))
    want = torch.nn.functional.cross_entropy(plain.logits(hidden.states)[0], IDS[1:])
    want.backward()
    assert_close(loss, want, rtol=0, atol=1e-5)
    for name, layer in layers.items():
        for got, leaf in zip((layer.lora_A, layer.lora_B), leaves[name], strict=True):
            assert leaf.grad.abs().max() > 1e-6, f"{name} is not in the loss"
            assert_close(got.grad, leaf.grad, rtol=1e-3, atol=1e-6, msg=name)


@EVERY
def test_only_adapters_learn(model):
    adapt(model, LORA, base="base", seed=0)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    optimizer = learn(model)
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    names = dict(adapted_layers(model))
    ends = ("weight", "lora_A", "lora_B")
    assert changed == {f"{name}.{end}" for name in names for end in ends}
    learned = {f"{name}.{end}" for name in names for end in ends[1:]}
    assert set(optimizer.names) == learned
    sizes = {key: x.numel() for key, x in optimizer.state_tensors().items() if "exp_avg" in key}
    numbers = sum(layer.lora_A.numel() + layer.lora_B.numel() for layer in names.values())
    assert sum(sizes.values()) == 2 * numbers
    assert {id(x) for x in lasting(model)}.isdisjoint(
        id(x) for layer in names.values() for x in (layer.weight, layer.lora_A, layer.lora_B)
    )


def sampled_logprobs(model: Transformer, seed: int) -> tuple[list[int], torch.Tensor]:
    """What the engine draws behind the ids, and how likely it says that was."""
    engine = Engine(model, EngineConfig(max_model_len=64))
    params = SamplingParams(max_tokens=16, seed=seed)
    drawn = engine.generate([Request(tuple(IDS.tolist()), params)])[0][0]
    return list(drawn.token_ids), torch.tensor(drawn.logprobs)


def forward_logprobs(model: Transformer, drawn: list[int]) -> torch.Tensor:
    ids = torch.tensor([*IDS.tolist(), *drawn])
    logits = model.logits(model(ids[None, :-1]).states)[0, len(IDS) - 1 :]
    return logits.log_softmax(-1).gather(-1, ids[len(IDS) :, None])[:, 0].detach()


@EVERY
def test_the_sampler_reads_the_weights_that_are_trained(model, random_model):
    """A sampler that had kept the base's weights would agree with the base, and is far from the trainer."""
    base = random_model(model.config)
    base.load_state_dict(model.state_dict())
    adapt(model, LORA, base="base", seed=0)
    engine = Engine(model, EngineConfig(max_model_len=64))  # made before anything is learned
    learn(model, steps=3)
    engine.load(model.state_dict(), version=1)
    params = SamplingParams(max_tokens=16, seed=3)
    drawn = engine.generate([Request(tuple(IDS.tolist()), params)])[0][0]
    ids, sampled = list(drawn.token_ids), torch.tensor(drawn.logprobs)
    assert_close(sampled, forward_logprobs(model, ids), rtol=0, atol=1e-4)
    assert (sampled - forward_logprobs(base, ids)).abs().max() > 0.05
    _, again = sampled_logprobs(model, seed=3)
    assert torch.equal(sampled, again)


@BOTH
def test_rounded_weights_hold_the_sum_of_adapters_that_are_not_rounded(model):
    """A small step that bfloat16 swallows is not lost: A and B keep it, in float32, until the sum moves."""
    model.to(torch.bfloat16)
    adapt(model, LORA, base="base", seed=0)
    optimizer = learn(model, steps=3)
    for name, layer in adapted_layers(model):
        assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
        delta = LORA.scaling * (layer.lora_B @ layer.lora_A)
        want = (layer.base_weight.float() + delta).bfloat16()
        assert layer.weight.dtype == torch.bfloat16
        assert_close(layer.weight, want, rtol=2**-7, atol=0, msg=name)
    assert not [key for key in optimizer.state_tensors() if key.startswith("master")]


@pytest.mark.parametrize("model", ["deepseek_v3-moonlight", "qwen3"], indirect=True)
def test_recomputed_blocks_have_the_same_gradients(model):
    adapt(model, LORA, base="base", seed=0)
    found = []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        loss_of(model).backward()
        found.append([p.grad.clone() for _, p in model.trained_parameters(ahead=False)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["deepseek_v3", "llama-biases"], indirect=True)
def test_compiled_blocks_have_the_same_gradients(model):
    adapt(model, LORA, base="base", seed=0)
    learn(model)
    found = []
    for compiled in (None, CompiledBlocks("aot_eager")):
        model.compiled = compiled
        model.zero_grad()
        loss_of(model).backward()
        found.append({name: p.grad.clone() for name, p in model.trained_parameters(ahead=False)})
    for name, plain in found[0].items():
        assert_close(found[1][name], plain, rtol=1e-3, atol=1e-6, msg=name)


@EVERY
def test_a_merged_folder_is_an_ordinary_model_in_transformers(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    adapt(model, LORA, base="base", seed=0)
    learn(model)
    save_model(model, tmp_path, token_ids={"eos_token_id": 1, "pad_token_id": 1})
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    with torch.no_grad():
        ours = model.logits(model(IDS[None]).states)
        difference = (theirs(IDS[None]).logits - ours).abs().max() / ours.abs().max()
    assert difference < 2e-5
    merged = load_model(tmp_path)
    assert merged.adapters is None
    with torch.no_grad():
        assert torch.equal(merged(IDS[None]).states, model(IDS[None]).states)


@BOTH
def test_the_files_are_those_of_peft(model, tmp_path):
    """As its guide to the checkpoint format has them: keys behind base_model.model, without the adapter's name."""
    adapt(model, LORA, base="some/base", seed=0)
    learn(model)
    save_adapter(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == "some/base"
    assert (config["r"], config["lora_alpha"], config["bias"]) == (3, 6.0, "none")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    layers = dict(adapted_layers(model))
    assert tensors.keys() == {
        f"base_model.model.{name}.lora_{x}.weight" for name in layers for x in "AB"
    }
    for name, layer in layers.items():
        down, up = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        assert down.shape == (3, layer.in_features) and up.shape == (layer.out_features, 3)
        delta = config["lora_alpha"] / config["r"] * up @ down
        assert_close(layer.base_weight + delta, layer.weight, rtol=0, atol=1e-6)
        # PEFT takes a module whose name is a target or ends with one behind a dot.
        assert any(name == t or name.endswith(f".{t}") for t in config["target_modules"])


def test_no_target_fits_an_expert_of_another_program(tiny_families):
    config = tiny_families["deepseek_v3"]
    targets = target_names(config, adapted(config, LORA))
    for name in ("model.layers.1.mlp.experts.3.gate_proj", "model.layers.1.mlp.gate"):
        assert not any(name.endswith(f".{target}") for target in targets)
    assert "mlp.shared_experts.gate_proj" in targets and "self_attn.kv_b_proj" in targets


@EVERY
def test_base_and_adapter_give_the_same_model_to_the_bit(model, tmp_path):
    base, folder = tmp_path / "base", tmp_path / "adapter"
    base.mkdir(), folder.mkdir()
    save_model(model, base, token_ids={})
    adapt(model, LORA, base=str(base), seed=0)
    learn(model)
    save_adapter(model, folder)
    again = load_adapted(base, folder, device="cpu", dtype=torch.float32)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [n for n, _ in again.trained_parameters(ahead=False)] == [
        n for n, _ in model.trained_parameters(ahead=False)
    ]
    learn(model), learn(again)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())


def test_adapters_begin_the_same_for_a_seed(tiny_families, random_model):
    drawn = []
    for seed in (0, 0, 1):
        model = random_model(tiny_families["qwen2"])
        adapt(model, LORA, base="base", seed=seed)
        drawn.append(torch.cat([layer.lora_A.flatten() for _, layer in adapted_layers(model)]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    "target", ["q_proj", "self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
)
def test_targets_are_ends_of_names_or_names(target, tiny_families):
    found = adapted(tiny_families["qwen2"], LoraConfig(target_modules=(target,)))
    layers = [1] if target.startswith("model") else range(3)
    assert list(found) == [f"model.layers.{i}.self_attn.q_proj" for i in layers]
    assert set(found.values()) == {(32, 32)}


@pytest.mark.parametrize(
    ("family", "target"),
    [
        ("qwen2", "kv_b_proj"),
        ("deepseek_v3", "k_proj"),
        ("deepseek_v3", "gate"),
        ("deepseek_v3", "experts"),
        ("qwen2", "embed_tokens"),
        ("qwen2", "lm_head"),
        ("qwen2", "proj"),
    ],
)
def test_a_target_that_is_not_there_is_refused_by_those_that_are(family, target, tiny_families):
    with pytest.raises(ConfigError, match=r"got " + target + r"\n.*o_proj"):
        adapted(tiny_families[family], LoraConfig(target_modules=("o_proj", target)))


def test_blocks_of_multi_token_prediction_have_no_adapters(tiny_families):
    config = tiny_families["deepseek_v3"].model_copy(update={"num_nextn_predict_layers": 1})
    assert not [name for name in adapted(config, LORA) if name.startswith("model.layers.3.")]


@pytest.fixture
def saved(tiny_families, random_model, tmp_path):
    """An adapted model, and the folder of its adapters."""
    model = random_model(tiny_families["qwen2"])
    adapt(model, LORA, base="base", seed=0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(model, folder)
    return model, folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("use_rslora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 4}),
        ("peft_type", "IA3"),
        ("r", 0),
        ("r", "many"),
        ("lora_alpha", -1),
    ],
)
def test_an_adapter_of_another_kind_is_refused(field, value, saved):
    _, folder = saved
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UserError, match=field):
        read_lora(folder)


def test_an_adapter_of_another_size_or_of_other_modules_is_refused(
    saved, tiny_families, random_model
):
    _, folder = saved
    others = [
        (LoraConfig(r=4, lora_alpha=6.0), "adapter_config.json: r"),
        (LoraConfig(r=3, lora_alpha=3.0), "lora_alpha"),
        (LoraConfig(r=3, lora_alpha=6.0, target_modules=("q_proj",)), "they differ in"),
    ]
    for lora, words in others:
        model = random_model(tiny_families["qwen2"])
        adapt(model, lora, base="base", seed=0)
        before = {name: x.clone() for name, x in model.state_dict().items()}
        with pytest.raises(UserError, match=words):
            load_adapter(model, folder)
        assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("damage", ["a key too many", "no such key", "shape", "cut short|damaged"])
def test_damaged_files_of_an_adapter_are_refused(damage, saved):
    model, folder = saved
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    if damage == "a key too many":
        tensors["model.norm.weight"] = torch.ones(3)
    elif damage == "no such key":
        del tensors[key]
    elif damage == "shape":
        tensors[key] = torch.ones(2, 2)
    save_file(tensors, path)
    if damage.startswith("cut"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=damage):
        load_adapter(model, folder)


def test_an_adapter_on_another_base_is_refused(saved, tiny_families, random_model, tmp_path):
    _, folder = saved
    base = tmp_path / "other"
    base.mkdir()
    save_model(random_model(tiny_families["deepseek_v3"]), base, token_ids={})
    with pytest.raises(UserError, match=r"an adapter of model\.layers\.0\.self_attn\.[qkv]_proj"):
        load_adapted(base, folder, device="cpu", dtype=torch.float32)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        read_lora(folder)
