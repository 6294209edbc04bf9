import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from nalar.config import UserError
from nalar.model import weights as weights_module
from nalar.model.config import ModelConfig
from nalar.model.families.registry import FAMILIES
from nalar.model.shards import INDEX, SINGLE
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, save_model

IDS = {"eos_token_id": 1, "pad_token_id": 1}
SHARD_BYTES = 20_000
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
EXPERTS = "model.layers.1.mlp.experts.gate_up"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        key: tensor
        for path in folder.glob("*.safetensors")
        for key, tensor in load_file(path).items()
    }


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / SINGLE)
    change(weights)
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_folder_that_is_read_and_written_is_the_same_to_the_byte(
    family_config: ModelConfig, random_model, dtype, tmp_path
):
    """Of every family, sharded: weights, index, config and generation config."""
    model = random_model(family_config).to(dtype)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    save_model(model, tmp_path / "a", token_ids=IDS, max_shard_bytes=SHARD_BYTES)
    back = load_model(tmp_path / "a", dtype=dtype)
    assert back.config == family_config
    for (name, ours), theirs in zip(
        model.state_dict().items(), back.state_dict().values(), strict=True
    ):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name
    save_model(back, tmp_path / "b", token_ids=IDS, max_shard_bytes=SHARD_BYTES)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert INDEX in files(tmp_path / "a") and SINGLE not in files(tmp_path / "a")


def test_what_transformers_wrote_is_written_again_to_the_byte(
    family_config: ModelConfig, random_model, tmp_path
):
    transformers = pytest.importorskip("transformers")
    for name in ("ours", "theirs", "again"):
        (tmp_path / name).mkdir()
    save_model(random_model(family_config), tmp_path / "ours", token_ids=IDS)
    family = FAMILIES[family_config.model_type]
    if family.model_type == "kimi_k2":  # it has no class of its own there
        change_config(tmp_path / "ours", model_type="deepseek_v3")
    theirs = getattr(transformers, family.architecture).from_pretrained(
        tmp_path / "ours", dtype=torch.bfloat16
    )
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=SHARD_BYTES)
    imported = load_model(tmp_path / "theirs", dtype=torch.bfloat16)
    save_model(imported, tmp_path / "again", token_ids=IDS)
    published, written = tensors(tmp_path / "theirs"), tensors(tmp_path / "again")
    assert published.keys() == written.keys() and len(published) > 20
    for key, tensor in published.items():
        assert tensor.dtype == written[key].dtype and torch.equal(tensor, written[key]), key


@torch.no_grad()
def test_a_loaded_model_computes_what_the_saved_one_did(
    family_config: ModelConfig, random_model, tmp_path
):
    model = random_model(family_config)
    save_model(model, tmp_path, token_ids=IDS)
    back = load_model(tmp_path)
    for name, buffer in model.named_buffers():
        assert torch.equal(back.get_buffer(name), buffer), name
    ids = torch.arange(20)[None] % family_config.vocab_size
    assert torch.equal(back(ids).states, model(ids).states)
    assert all(p.requires_grad for p in back.parameters())


def test_parameters_take_the_dtype_and_the_balance_bias_stays_as_published(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids=IDS)
    published = load_file(tmp_path / SINGLE)
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.float32}
    rounded = load_model(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    state = rounded.state_dict()
    assert torch.equal(state[BIAS], published[BIAS]) and state[BIAS].dtype == torch.float32
    head = published["lm_head.weight"]
    assert torch.equal(state["lm_head.weight"], head.bfloat16())
    rounded_bias = published[BIAS].bfloat16().float()
    assert not torch.equal(state[BIAS], rounded_bias), "a bias that rounding does not change"


def test_parameters_are_bf16_where_the_device_is_no_cpu(tiny_model, tmp_path):
    """The meta device stands for one: it takes copies and keeps nothing."""
    save_model(tiny_model, tmp_path, token_ids=IDS)
    elsewhere = load_model(tmp_path, device="meta")
    assert {(p.device.type, p.dtype) for p in elsewhere.parameters()} == {("meta", torch.bfloat16)}
    assert {b.device.type for b in elsewhere.buffers()} == {"meta"}
    assert elsewhere.state_dict()[BIAS].dtype == torch.float32


def test_weights_of_any_float_dtype_are_read(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids=IDS)
    expected = load_file(tmp_path / SINGLE)[EXPERT].half().float()
    change_weights(tmp_path, lambda w: w.update({EXPERT: w[EXPERT].half()}))
    assert torch.equal(load_model(tmp_path).state_dict()[EXPERTS][3, 1], expected)


def test_a_tied_model_is_written_without_a_head(tiny_config, tmp_path):
    model = Transformer(tiny_config.model_copy(update={"tie_word_embeddings": True}))
    model.initialize(seed=0)
    save_model(model, tmp_path, token_ids=IDS)
    embedding = load_file(tmp_path / SINGLE)["model.embed_tokens.weight"]
    assert "lm_head.weight" not in load_file(tmp_path / SINGLE)
    # Other programs write the head too. It says nothing new, and must not say anything else.
    change_weights(tmp_path, lambda w: w.update({"lm_head.weight": embedding.clone()}))
    assert torch.equal(load_model(tmp_path).head_weight, embedding)
    change_weights(tmp_path, lambda w: w["lm_head.weight"][3, 4].add_(1))
    with pytest.raises(UserError, match=r"lm_head\.weight: got other values") as caught:
        load_model(tmp_path)
    assert caught.value.want == "the values of model.embed_tokens.weight, which it repeats"


def test_tables_of_rotary_frequencies_are_left_out(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids=IDS)
    key = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(tmp_path, lambda w: w.update({key: torch.ones(4)}))
    assert key not in load_model(tmp_path).state_dict()


BAD_CONFIGS = [
    (lambda d: change_config(d, model_type="gpt2"), "model_type", "gpt2"),
    (lambda d: change_config(d, hidden_size="wide"), "hidden_size", "wide"),
    (lambda d: change_config(d, hidden_size=-4), "hidden_size", "-4"),
    (lambda d: change_config(d, hidden_act="gelu"), "hidden_act", "gelu"),
    (lambda d: change_config(d, logit_softcap=30.0), "logit_softcap", "30.0"),
    (
        lambda d: change_config(d, quantization_config={"quant_method": "fp8"}),
        "quantization_config",
        "quantised weights (fp8)",
    ),
    (lambda d: change_config(d, quantization_config="gptq"), "quantization_config", "quantised"),
]


@pytest.fixture
def nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "allocate", lambda *_: pytest.fail("allocated"))


@pytest.mark.parametrize(("damage", "field", "got"), BAD_CONFIGS)
@pytest.mark.usefixtures("nothing_is_allocated")
def test_a_config_that_is_not_built_is_named_before_weights_are_looked_at(
    damage, field, got, tiny_model, tmp_path
):
    save_model(tiny_model, tmp_path, token_ids=IDS)
    (tmp_path / SINGLE).unlink()
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        load_model(tmp_path)
    assert caught.value.at == f"{tmp_path / 'config.json'}: {field}"
    assert got in caught.value.got


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b'{"model_type": '])
@pytest.mark.usefixtures("nothing_is_allocated")
def test_a_config_that_is_no_json_object_is_bad_input(data, tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids=IDS)
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(UserError, match=r"config\.json: got text that is not a JSON object"):
        load_model(tmp_path)


def cut_short(folder: Path) -> None:
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "key", "got", "want"),
    [
        (
            lambda d: change_weights(d, lambda w: w.pop(EXPERT)),
            EXPERT,
            "no such key",
            "a tensor of shape [24, 32], as config.json describes",
        ),
        (
            lambda d: change_weights(d, lambda w: w.update(extra=torch.zeros(2))),
            "extra",
            "a key too many",
            "only the weights that config.json describes",
        ),
        (
            lambda d: change_weights(d, lambda w: w.update({EXPERT: w[EXPERT].T.contiguous()})),
            EXPERT,
            "shape [32, 24]",
            "shape [24, 32], as config.json describes",
        ),
        (
            lambda d: change_weights(d, lambda w: w.update({EXPERT: w[EXPERT][None].clone()})),
            EXPERT,
            "shape [1, 24, 32]",
            "shape [24, 32], as config.json describes",
        ),
        (
            lambda d: change_weights(d, lambda w: w.update({EXPERT: w[EXPERT].char()})),
            EXPERT,
            "dtype I8",
            "one of F64, F32, F16, BF16",
        ),
        (
            lambda d: change_weights(
                d, lambda w: w.update({EXPERT: w[EXPERT].to(torch.float8_e4m3fn)})
            ),
            EXPERT,
            "dtype F8_E4M3",
            "one of F64, F32, F16, BF16",
        ),
        (
            lambda d: change_config(d, num_hidden_layers=2**14),
            "model.layers.3.input_layernorm.weight",
            "no such key",
            "a tensor of shape [32], as config.json describes",
        ),
        (
            lambda d: change_config(d, vocab_size=10**12),
            "model.embed_tokens.weight",
            "shape [96, 32]",
            "shape [1000000000000, 32], as config.json describes",
        ),
        (cut_short, None, "a file cut short or damaged", "a whole safetensors file"),
        (
            lambda d: (d / SINGLE).write_bytes(b""),
            None,
            "an empty file",
            "a whole safetensors file",
        ),
        (
            lambda d: torch.save({"a": torch.zeros(3)}, d / SINGLE),
            None,
            "a pickle, which can run code",
            "a whole safetensors file",
        ),
    ],
)
@pytest.mark.usefixtures("nothing_is_allocated")
def test_weights_that_do_not_fit_are_refused_by_file_key_and_expectation(
    damage, key, got, want, tiny_model, tmp_path
):
    save_model(tiny_model, tmp_path, token_ids=IDS)
    damage(tmp_path)
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        load_model(tmp_path)
    assert caught.value.at == f"{tmp_path / SINGLE}" + (f": {key}" if key else "")
    assert caught.value.got.startswith(got)
    assert caught.value.want == want
    assert files(tmp_path) == before


@pytest.mark.usefixtures("nothing_is_allocated")
def test_a_key_that_is_missing_from_shards_is_missed_in_the_index(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids=IDS, max_shard_bytes=SHARD_BYTES)
    index = json.loads((tmp_path / INDEX).read_bytes())
    shard = tmp_path / index["weight_map"].pop(EXPERT)
    (tmp_path / INDEX).write_text(json.dumps(index))
    weights = load_file(shard)
    del weights[EXPERT]
    save_file(weights, shard)
    with pytest.raises(UserError, match=f"{re.escape(INDEX)}: {re.escape(EXPERT)}: got no such"):
        load_model(tmp_path)


@pytest.mark.parametrize("raised", [MemoryError("x"), RuntimeError("can't allocate memory")])
def test_what_does_not_fit_into_memory_is_bad_input(tiny_model, tmp_path, monkeypatch, raised):
    def allocate(*_):
        raise raised

    save_model(tiny_model, tmp_path, token_ids=IDS)
    monkeypatch.setattr("nalar.model.weights.allocate", allocate)
    with pytest.raises(UserError, match="a model that fits on cpu"):
        load_model(tmp_path)


def test_code_in_a_folder_is_never_run(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids=IDS)
    ran = tmp_path / "ran"
    for name in ("modeling_deepseek", "configuration_deepseek", "__init__"):
        (tmp_path / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')")
    code = {"AutoConfig": "configuration_deepseek.C", "AutoModelForCausalLM": "modeling_deepseek.M"}
    change_config(tmp_path, auto_map=code)
    load_model(tmp_path)
    assert not ran.exists()


def test_a_model_in_the_hubs_cache_loads_by_its_id(tiny_model, tmp_path, monkeypatch):
    """Laid out as the hub's library does: a snapshot of links into blobs."""
    repo = tmp_path / "models--house--model"
    snapshot, blobs = repo / "snapshots" / ("0a" * 20), repo / "blobs"
    for folder in (snapshot, blobs, repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text("0a" * 20)
    save_model(tiny_model, blobs, token_ids=IDS, max_shard_bytes=SHARD_BYTES)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    back = load_model("house/model").state_dict()
    assert all(torch.equal(back[name], ours) for name, ours in tiny_model.state_dict().items())


def test_every_field_that_other_engines_read_is_written(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids=IDS)
    config = json.loads((tmp_path / "config.json").read_bytes())
    assert config["scoring_func"] == "sigmoid"
    assert config["topk_method"] == "noaux_tc"
    assert config["norm_topk_prob"] is True
    assert config["rope_scaling"] is None
    assert (config["torch_dtype"], config["eos_token_id"]) == ("float32", 1)
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    generation = json.loads((tmp_path / "generation_config.json").read_bytes())
    assert (generation["eos_token_id"], generation["do_sample"]) == (1, True)
