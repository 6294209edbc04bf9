import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nalar.config import UserError
from nalar.model.weights import load_model, save_model


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("config.json", lambda data: data[: len(data) // 2]),
        ("config.json", lambda data: b"[]"),
        ("config.json", lambda data: b"\xff\xfe"),
        ("config.json", lambda data: _with(data, model_type="llama")),
        ("config.json", lambda data: _with(data, hidden_size="wide")),
        ("config.json", lambda data: _with(data, hidden_size=-4)),
        ("config.json", lambda data: _with(data, num_hidden_layers=9)),
        ("model.safetensors", lambda data: b""),
        ("model.safetensors", lambda data: data[:100]),
    ],
)
def test_a_damaged_model_folder_is_bad_input(file, damage, tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids={})
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError):
        load_model(tmp_path)


def _with(data: bytes, **changes: object) -> bytes:
    return json.dumps(json.loads(data) | changes).encode()


def test_weights_that_do_not_fit_the_config_are_refused_by_name(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids={})
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    up = "model.layers.1.mlp.experts.3.up_proj.weight"
    for damaged in (
        {k: v for k, v in weights.items() if k != up},
        weights | {up: weights[up][1:].clone()},
        weights | {up.replace("up", "sideways"): weights[up].clone()},
    ):
        save_file(damaged, path)
        with pytest.raises(UserError, match=r"experts\.3\.(up|sideways)_proj"):
            load_model(tmp_path)


def test_blocks_of_multi_token_prediction_are_left_aside(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids={})
    path = tmp_path / "config.json"
    path.write_bytes(_with(path.read_bytes(), num_nextn_predict_layers=1))
    weights = load_file(tmp_path / "model.safetensors")
    extra = {"model.layers.3.eh_proj.weight": torch.zeros(32, 64)}
    save_file(weights | extra, tmp_path / "model.safetensors")
    again = load_model(tmp_path)
    assert again.config == tiny_model.config
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_quantised_weights_are_refused(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids={})
    path = tmp_path / "config.json"
    path.write_bytes(_with(path.read_bytes(), quantization_config={"quant_method": "fp8"}))
    with pytest.raises(UserError, match="quantization_config"):
        load_model(tmp_path)


@pytest.mark.parametrize("family_config", ["qwen2"], indirect=True)
def test_a_tied_head_may_be_there_but_must_be_the_embedding(family_config, random_model, tmp_path):
    model = random_model(family_config)
    save_model(model, tmp_path, token_ids={})
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    assert "lm_head.weight" not in weights
    embedding = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": embedding.clone()}, path)
    assert torch.equal(load_model(tmp_path).head_weight, embedding)
    save_file(weights | {"lm_head.weight": embedding + 1}, path)
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        load_model(tmp_path)
