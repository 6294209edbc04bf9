"""Folders with blocks of multi-token prediction: ours to the byte, and as transformers reads them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nalar.config import UserError
from nalar.model.config import ModelConfig
from nalar.model.shards import INDEX, SINGLE
from nalar.model.weights import load_model, save_model

IDS = {"eos_token_id": 1, "pad_token_id": 1, "bos_token_id": 1}
SIZES = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 2,
    "num_attention_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
}
EMBEDDING, HEAD = "model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"


@pytest.fixture
def deep(random_model):
    def make(**changes: object):
        return random_model(ModelConfig(**(SIZES | {"num_nextn_predict_layers": 1} | changes)))

    return make


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / SINGLE)
    change(weights)
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})


def test_a_block_has_the_published_names_and_copies_of_what_it_shares(deep, tmp_path):
    """As DeepSeek-V3's README_WEIGHTS lists them, at the index behind the last layer."""
    model = deep()
    save_model(model, tmp_path, token_ids=IDS)
    weights = load_file(tmp_path / SINGLE)
    behind = {key.removeprefix("model.layers.3.") for key in weights if ".layers.3." in key}
    like_the_last = {key.removeprefix("model.layers.2.") for key in weights if ".layers.2." in key}
    own = {"enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head", "embed_tokens"}
    assert behind == like_the_last | {f"{name}.weight" for name in own}
    assert "mlp.gate.e_score_correction_bias" in behind
    assert weights["model.layers.3.eh_proj.weight"].shape == (16, 32)
    assert torch.equal(weights[EMBEDDING], weights["model.embed_tokens.weight"])
    assert torch.equal(weights[HEAD], weights["lm_head.weight"])
    assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_nextn_predict_layers": 2, "model_type": "kimi_k2"},
        {"tie_word_embeddings": True},
        {"n_routed_experts": 0, "first_k_dense_replace": 4},
    ],
)
def test_a_folder_that_is_read_and_written_is_the_same_to_the_byte(deep, tmp_path, changes, dtype):
    model = deep(**changes).to(dtype)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    save_model(model, tmp_path / "a", token_ids=IDS, max_shard_bytes=10_000)
    back = load_model(tmp_path / "a", dtype=dtype)
    assert back.config == model.config
    own = model.state_dict()
    assert own.keys() == back.state_dict().keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in back.state_dict().items())
    save_model(back, tmp_path / "b", token_ids=IDS, max_shard_bytes=10_000)
    assert files(tmp_path / "a") == files(tmp_path / "b") and INDEX in files(tmp_path / "a")


@pytest.mark.parametrize("key", [EMBEDDING, HEAD])
def test_a_copy_that_says_something_else_is_refused_by_name(deep, tmp_path, key):
    save_model(deep(), tmp_path, token_ids=IDS)
    change_weights(tmp_path, lambda w: w[key][3, 4].add_(1))
    with pytest.raises(UserError, match="got other values") as caught:
        load_model(tmp_path)
    assert key in caught.value.at


def test_a_folder_whose_blocks_are_gone_is_told_what_its_config_should_say(deep, tmp_path):
    """As transformers leaves it: it has no such blocks, but keeps the field of the config."""
    save_model(deep(), tmp_path, token_ids=IDS)
    change_weights(tmp_path, lambda w: [w.pop(key) for key in list(w) if ".layers.3." in key])
    with pytest.raises(UserError, match=r"model\.layers\.3\.") as caught:
        load_model(tmp_path)
    assert caught.value.hint is not None and "num_nextn_predict_layers 0" in caught.value.hint
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 0}))
    assert load_model(tmp_path).config.num_nextn_predict_layers == 0


def test_a_layer_behind_the_last_that_the_config_does_not_speak_of_is_a_key_too_many(
    deep, tmp_path
):
    save_model(deep(), tmp_path, token_ids=IDS)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 0}))
    with pytest.raises(UserError, match="a key too many"):
        load_model(tmp_path)


def test_who_does_not_want_the_blocks_does_not_load_them(deep, tmp_path):
    model = deep()
    save_model(model, tmp_path, token_ids=IDS)
    light = load_model(tmp_path, with_mtp=False)
    assert light.config.num_nextn_predict_layers == 0
    own = {n: t for n, t in model.state_dict().items() if not n.startswith("model.layers.3.")}
    assert light.state_dict().keys() == own.keys()
    assert all(torch.equal(light.state_dict()[name], tensor) for name, tensor in own.items())
    change_weights(tmp_path, lambda w: w.pop("model.layers.3.enorm.weight"))
    with pytest.raises(UserError, match="enorm"):  # a damaged folder all the same
        load_model(tmp_path, with_mtp=False)


@torch.no_grad()
def test_transformers_passes_over_the_block_behind_61_layers(deep, tmp_path):
    """The one index that its DeepseekV3 class ignores: no key missing, left over or made up, and our logits."""
    transformers = pytest.importorskip("transformers")
    model = deep(num_hidden_layers=61, first_k_dense_replace=59, initializer_range=0.05)
    save_model(model, tmp_path, token_ids=IDS)
    assert "model.layers.61.eh_proj.weight" in load_file(tmp_path / SINGLE)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    ids = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(3))
    expected, got = theirs.eval()(ids).logits, model.logits(model(ids).states)
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()


@torch.no_grad()
def test_at_any_other_depth_transformers_names_the_block_and_computes_the_same(deep, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = deep()
    save_model(model, tmp_path, token_ids=IDS)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    left_over = info.pop("unexpected_keys")
    assert not any(info.values()), info
    assert left_over and all(key.startswith("model.layers.3.") for key in left_over)
    ids = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(3))
    expected, got = theirs.eval()(ids).logits, model.logits(model(ids).states)
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()
