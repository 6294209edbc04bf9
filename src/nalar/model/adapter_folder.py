"""Adapters in PEFT's format: a folder with `adapter_config.json` and `adapter_model.safetensors`."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nalar.config import ConfigError, UserError
from nalar.disk import encode
from nalar.model.config import LoraConfig
from nalar.model.families.adapters import target_names
from nalar.model.folder import read_json
from nalar.model.lora import AdaptedLinear, adapt, adapted_layers, fold
from nalar.model.shards import open_shard
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model

ADAPTER = "adapter"
"""Where a checkpoint has it."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PLAIN: Mapping[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "use_dora": False,
}
"""Fields of which one value is built; where a folder says nothing, it means that."""
_WRITTEN: Mapping[str, Any] = {
    "lora_dropout": 0.0,
    "init_lora_weights": True,
    "inference_mode": True,
    "layers_to_transform": None,
    "layers_pattern": None,
    "revision": None,
}
"""Fields that change nothing once an adapter is trained, for other readers."""


def save_adapter(model: Transformer, folder: Path) -> None:
    """Write both files into a folder that is there. The weights are float32, whatever the model's are."""
    assert model.adapters is not None, "a model with adapters"
    layers = dict(adapted_layers(model))
    lora = model.adapters.config
    sizes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    document = {
        **_PLAIN,
        **_WRITTEN,
        "base_model_name_or_path": model.adapters.base,
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "target_modules": target_names(model.config, sizes),
    }
    (folder / ADAPTER_CONFIG).write_bytes(encode(document, indent=2) + b"\n")
    tensors = {
        key: tensor.detach().contiguous()
        for name, layer in layers.items()
        for key, tensor in _keys(name, layer).items()
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def read_lora(folder: Path) -> LoraConfig:
    """The adapter that a folder holds: rank, alpha, and the modules by their whole names.

    UserError where it asks for what is not built.
    """
    path = folder / ADAPTER_CONFIG
    document = read_json(path)
    for field, plain in _PLAIN.items():
        if document.get(field, plain) != plain:
            raise UserError(
                at=f"{path}: {field}",
                got=repr(document[field]),
                want=f"{plain!r}: nothing else is built",
            )
    with open_shard(folder / ADAPTER_WEIGHTS) as shard:
        names = dict.fromkeys(_module_of(key, folder) for key in shard.keys())  # noqa: SIM118
    # What an older PEFT leaves out is 8 each.
    said = {field: document.get(field, 8) for field in ("r", "lora_alpha")}
    try:
        return LoraConfig.model_validate(said | {"target_modules": tuple(names)})
    except ValueError as error:
        raise UserError(
            at=str(path),
            got=f"r {said['r']!r}, lora_alpha {said['lora_alpha']!r}",
            want="a rank of at least 1 and an alpha above 0",
        ) from error


@torch.no_grad()
def load_adapter(model: Transformer, folder: Path) -> None:
    """Give an adapted model the adapters of a folder, and fold them in.

    UserError: they are of other modules, of another rank or alpha. Nothing is changed then.
    """
    assert model.adapters is not None, "a model with adapters"
    layers = dict(adapted_layers(model))
    _refuse_other(folder, model.adapters.config, read_lora(folder), layers.keys())
    wanted = {key: x for name, layer in layers.items() for key, x in _keys(name, layer).items()}
    with open_shard(folder / ADAPTER_WEIGHTS) as shard:
        stored = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
        for key, tensor in wanted.items():
            if key not in stored or stored[key].shape != tensor.shape:
                raise UserError(
                    at=f"{folder / ADAPTER_WEIGHTS}: {key}",
                    got=f"shape {list(stored[key].shape)}" if key in stored else "no such key",
                    want=f"a tensor of shape {list(tensor.shape)}",
                )
        for key, tensor in wanted.items():
            tensor.copy_(stored[key])
    fold(model)


def load_adapted(
    base: Path, folder: Path, *, device: torch.device | str, dtype: torch.dtype
) -> Transformer:
    """A base with the adapters of a folder on it, to be trained on. UserError where one does not fit the other."""
    model = load_model(base, device=device, dtype=dtype)
    try:
        adapt(model, read_lora(folder), base=str(base), seed=0)
    except ConfigError as error:
        raise UserError(
            at=str(folder), got=f"an adapter of {error.got}", want=error.want, hint=error.hint
        ) from error
    load_adapter(model, folder)
    return model


def _keys(name: str, layer: AdaptedLinear) -> dict[str, Tensor]:
    """As PEFT calls the two tensors of a module's adapter."""
    return {
        f"{_PREFIX}{name}.lora_A.weight": layer.lora_A,
        f"{_PREFIX}{name}.lora_B.weight": layer.lora_B,
    }


def _module_of(key: str, folder: Path) -> str:
    name = key.removeprefix(_PREFIX)
    for end in (".lora_A.weight", ".lora_B.weight"):
        if key.startswith(_PREFIX) and name.endswith(end):
            return name.removesuffix(end)
    raise UserError(
        at=f"{folder / ADAPTER_WEIGHTS}: {key}",
        got="a key too many",
        want=f"keys such as {_PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight",
    )


def _refuse_other(folder: Path, own: LoraConfig, found: LoraConfig, names: Collection[str]) -> None:
    for field in ("r", "lora_alpha"):
        ours, theirs = getattr(own, field), getattr(found, field)
        if ours != theirs:
            raise UserError(
                at=f"{folder / ADAPTER_CONFIG}: {field}",
                got=str(theirs),
                want=f"{ours}, as lora.{field} says",
            )
    apart = {*names} ^ {*(found.target_modules or ())}
    if apart:
        raise UserError(
            at=str(folder),
            got=f"adapters of {len(found.target_modules or ())} modules, and {len(names)} are asked for; "
            f"they differ in {min(apart)}",
            want="the same modules",
            hint=f"lora.target_modules as in {ADAPTER_CONFIG}",
        )
