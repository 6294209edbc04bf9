"""Which matrices of a model can have an adapter of low rank, by their published names. Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nalar.config import ConfigError, nearest
from nalar.model.config import LoraConfig, ModelConfig
from nalar.model.families.registry import FAMILIES

_PROJECTION = re.compile(
    r"model\.layers\.(\d+)\.((?:self_attn|mlp)\..*_proj(?:_with_mqa)?)\.weight"
)

Sizes = tuple[int, int]
"""Rows and columns of a matrix: what it makes, and what it takes."""


@dataclass(frozen=True)
class Adapters:
    """What a model with adapters says of them."""

    config: LoraConfig
    base: str
    """Name or folder of the model that they are on."""


def adapted(config: ModelConfig, lora: LoraConfig) -> dict[str, Sizes]:
    """The modules that get an adapter, in the order of the family's table. ConfigError where a name is none of them."""
    known = _projections(config)
    if lora.target_modules is None:
        return known
    chosen: set[str] = set()
    for target in lora.target_modules:
        found = {name for name in known if _is_called(name, target)}
        if not found:
            _refuse(target, known)
        chosen |= found
    if not chosen:
        _refuse("nothing", known)
    return {name: sizes for name, sizes in known.items() if name in chosen}


def target_names(config: ModelConfig, names: Mapping[str, Sizes]) -> list[str]:
    """These modules as PEFT's `target_modules`: the ends that all layers share, or whole names where layers differ.

    No end fits more modules than these, routed experts of other programs included.
    """
    ends = sorted({within_layer(name) for name in names})
    same = adapted(config, LoraConfig(target_modules=tuple(ends)))
    return ends if same.keys() == names.keys() else list(names)


def within_layer(name: str) -> str:
    """What is left of a module's name without its layer: self_attn.q_proj."""
    return name.split(".", 3)[3]


def _projections(config: ModelConfig) -> dict[str, Sizes]:
    """Without routed experts, which are stacks, and without blocks of multi-token prediction."""
    found: dict[str, Sizes] = {}
    for place in FAMILIES[config.model_type].placements(config):
        named = _PROJECTION.fullmatch(place.key)
        if named and place.name == place.key and int(named[1]) < config.num_hidden_layers:
            rows, columns = place.shape
            found[place.key.removesuffix(".weight")] = rows, columns
    return found


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _refuse(target: str, known: Mapping[str, Sizes]) -> None:
    ends = sorted({within_layer(name).rpartition(".")[2] for name in known})
    close = nearest(target, ends)
    raise ConfigError(
        at="lora.target_modules",
        got=target,
        want="modules of this model that can have an adapter: " + ", ".join(ends),
        hint=close and f"did you mean {close!r}?",
    )
