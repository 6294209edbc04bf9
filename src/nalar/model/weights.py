"""A model as the Hugging Face folder that other programs load, and back."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nalar.config import UserError
from nalar.disk import decode
from nalar.model.config import ModelConfig
from nalar.model.families import deepseek_v3
from nalar.model.transformer import Transformer


def save_model(model: Transformer, folder: Path, *, token_ids: dict[str, int]) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` into an existing folder.

    token_ids: `eos_token_id`, `pad_token_id` and the like. The caller makes the folder appear atomically.
    """
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    config = deepseek_v3.publish_config(model.config) | token_ids | {"torch_dtype": dtype}
    _write_json(folder / "config.json", config)
    generation = {"do_sample": True, "temperature": 1.0} | token_ids
    _write_json(folder / "generation_config.json", generation)
    weights = deepseek_v3.publish_weights(model.state_dict())
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
    config = _read_config(config_path)
    try:
        model = Transformer(config)
        state = deepseek_v3.read_weights(load_file(weights_path), config)
        model.load_state_dict(state)
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            at=str(weights_path),
            got=str(error),
            want="exactly the weights that config.json describes",
        ) from error
    return model


def _read_config(path: Path) -> ModelConfig:
    document = decode(path.read_bytes())
    if document is None:
        raise UserError(
            at=str(path), got="text that is not a JSON object", want="a published config.json"
        )
    try:
        return deepseek_v3.read_config(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "config"
        want = "a config.json of the deepseek_v3 family"
        raise UserError(at=f"{path}: {field}", got=first["msg"].lower(), want=want) from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
