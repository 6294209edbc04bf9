"""Where a run computes, and in which numbers: what its config asks for, against what this machine has."""

from dataclasses import dataclass
from typing import TypeVar

import torch

from nalar.config import UserError
from nalar.pipeline.config import RunConfig

C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True)
class Place:
    """Of a model's parameters."""

    device: torch.device
    dtype: torch.dtype


def settled(config: C) -> C:
    """The config with `auto` replaced by what is here. UserError where this machine lacks what it asks for."""
    has_gpu = torch.cuda.is_available()
    if config.device == "auto":
        config = config.model_copy(update={"device": "cuda" if has_gpu else "cpu"})
    if config.device == "cpu":
        return config
    if not has_gpu:
        built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no GPU"
        raise UserError(
            at="device",
            got=f"'cuda', and torch {torch.__version__}, built for {built_for}, finds none",
            want="a GPU that torch can use",
            hint="--device cpu in a new run; or a torch built for CUDA, and the driver of the GPU",
        )
    if config.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            at="dtype",
            got=f"'bfloat16' on {torch.cuda.get_device_name()}",
            want="'float32': this GPU has no arithmetic in bfloat16",
            hint="--dtype float32",
        )
    return config


def place_of(config: RunConfig) -> Place:
    """As `settled` finds it."""
    return Place(torch.device(settled(config).device), getattr(torch, config.dtype))
