"""A model as the Hugging Face folder that other programs load, and back."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nalar.config import UserError
from nalar.disk import decode
from nalar.model.config import ModelConfig
from nalar.model.families.family import Family
from nalar.model.families.registry import FAMILIES, family_of
from nalar.model.transformer import Transformer


def save_model(model: Transformer, folder: Path, *, token_ids: dict[str, int]) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` into an existing folder.

    token_ids: `eos_token_id`, `pad_token_id` and the like. The caller makes the folder appear atomically.
    """
    family, state = FAMILIES[model.config.model_type], model.state_dict()
    dtype = str(model.head_weight.dtype).removeprefix("torch.")
    config = family.publish_config(model.config) | token_ids | {"torch_dtype": dtype}
    _write_json(folder / "config.json", config)
    generation = {"do_sample": True, "temperature": 1.0} | token_ids
    _write_json(folder / "generation_config.json", generation)
    weights = {
        placed.key: state[placed.name][placed.index].view(placed.shape).contiguous()
        for placed in family.placements(model.config)
        if placed.is_written
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: Path) -> Transformer:
    """The model in a Hugging Face folder, fp32 on the CPU. Every key must be known and present."""
    config_path, weights_path = folder / "config.json", folder / "model.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise UserError(
                at=str(folder),
                got=f"no {path.name}",
                want="a folder with config.json and model.safetensors",
            )
    family, config = _read_config(config_path)
    model = Transformer(config)
    try:
        _fill(model, family, load_file(weights_path))
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            at=str(weights_path),
            got=str(error),
            want="exactly the weights that config.json describes",
        ) from error
    return model


@torch.no_grad()
def _fill(model: Transformer, family: Family, published: dict[str, Tensor]) -> None:
    """Copy every published tensor to its place. KeyError: one is missing, or has no place."""
    state = model.state_dict()
    for placed in family.placements(model.config):
        tensor = published.pop(placed.key, None)
        if tensor is None:
            if placed.is_written:
                raise KeyError(placed.key)
            continue
        target = state[placed.name][placed.index].view(placed.shape)
        if tensor.shape != target.shape:
            raise KeyError(f"{placed.key} of shape {tuple(tensor.shape)}, not {placed.shape}")
        if placed.is_copy and not torch.equal(tensor.to(target.dtype), target):
            raise KeyError(f"{placed.key}, unlike {placed.name}, which it should equal")
        target.copy_(tensor)
    for key in published:
        if not family.is_skipped(model.config, key):
            raise KeyError(f"{key}, for which the model has no place")


def _read_config(path: Path) -> tuple[Family, ModelConfig]:
    document = decode(path.read_bytes())
    if document is None:
        raise UserError(
            at=str(path), got="text that is not a JSON object", want="a published config.json"
        )
    if document.get("quantization_config"):
        raise UserError(
            at=f"{path}: quantization_config",
            got="weights that are stored quantised",
            want="plain float weights",
        )
    try:
        family = family_of(document)
        config = family.read_config(document)
    except UserError as error:
        raise UserError(
            at=f"{path}: {error.at.removeprefix('config.json ')}",
            got=error.got,
            want=error.want,
            hint=error.hint,
        ) from error
    # The blocks of multi-token prediction are not built; `is_skipped` knows their tensors.
    return family, config.model_copy(update={"num_nextn_predict_layers": 0})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
