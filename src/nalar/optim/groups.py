"""Who owns which parameter: ordered patterns over Hugging Face deepseek_v3 names, none left."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from nalar.config import ConfigError
from nalar.optim.config import OptimConfig

Owner = Literal["muon", "adamw", "router"]

# The first match decides. A shape is no safe test: embedding and head are matrices too.
PATTERNS: tuple[tuple[str, Owner], ...] = (
    ("model.embed_tokens.weight", "adamw"),
    ("lm_head.weight", "adamw"),
    ("score.weight", "adamw"),
    ("*norm.weight", "adamw"),
    ("*.bias", "adamw"),
    ("*.lora_A", "adamw"),
    ("*.lora_B", "adamw"),
    ("*.mlp.gate.weight", "router"),
    ("*.self_attn.q_proj.weight", "muon"),
    ("*.self_attn.k_proj.weight", "muon"),
    ("*.self_attn.v_proj.weight", "muon"),
    ("*.self_attn.q_a_proj.weight", "muon"),
    ("*.self_attn.q_b_proj.weight", "muon"),
    ("*.self_attn.kv_a_proj_with_mqa.weight", "muon"),
    ("*.self_attn.kv_b_proj.weight", "muon"),
    ("*.self_attn.o_proj.weight", "muon"),
    ("*.mlp.experts.gate_up", "muon"),
    ("*.mlp.experts.down", "muon"),
    ("*.mlp.shared_experts.*_proj.weight", "muon"),
    ("*.mlp.gate_proj.weight", "muon"),
    ("*.mlp.up_proj.weight", "muon"),
    ("*.mlp.down_proj.weight", "muon"),
    ("*.eh_proj.weight", "muon"),
)


@dataclass(frozen=True)
class Groups:
    """Parameters by name, each in exactly one of the two, in the order in which they came."""

    muon: dict[str, Tensor] = field(default_factory=dict)
    adamw: dict[str, Tensor] = field(default_factory=dict)


def group_parameters(named_parameters: Iterable[tuple[str, Tensor]], config: OptimConfig) -> Groups:
    """Sort every parameter to its owner.

    ConfigError: a name that no pattern knows, or a tensor that comes twice.
    """
    groups = Groups()
    name_by_id: dict[int, str] = {}
    for name, parameter in named_parameters:
        if id(parameter) in name_by_id:
            raise ConfigError(
                at=f"optim.groups: {name}",
                got=f"the tensor that {name_by_id[id(parameter)]} already names",
                want="each parameter once",
            )
        name_by_id[id(parameter)] = name
        owner = _owner(name, config)
        if owner == "muon" and parameter.ndim < 2:
            raise ConfigError(
                at=f"optim.groups: {name}",
                got=f"shape {tuple(parameter.shape)}",
                want="a matrix or a stack of matrices, as Muon needs",
            )
        (groups.muon if owner == "muon" else groups.adamw)[name] = parameter
    return groups


def _owner(name: str, config: OptimConfig) -> Literal["muon", "adamw"]:
    for pattern, owner in PATTERNS:
        if fnmatch.fnmatchcase(name, pattern):
            if config.name == "adamw":
                return "adamw"
            return config.router_group if owner == "router" else owner
    raise ConfigError(
        at=f"optim.groups: {name}",
        got="a name that no pattern knows",
        want="one owner for every parameter",
        hint="add a pattern to PATTERNS in nalar/optim/groups.py",
    )
