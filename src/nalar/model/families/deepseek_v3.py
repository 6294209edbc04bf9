"""How a deepseek_v3 checkpoint spells its config and its weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nalar.config import ConfigError
from nalar.model.config import ModelConfig

MODEL_TYPE = "deepseek_v3"

# Written because engines default them wrongly when absent (vLLM: softmax scores, no balance bias).
_CONSTANTS: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "architectures": ["DeepseekV3ForCausalLM"],
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "hidden_act": "silu",
    "attention_bias": False,
    "rope_interleave": True,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 0,
}
# Where a checkpoint sets one of these to something else, it asks for what is not built.
_REQUIRED_CONSTANTS = (
    "scoring_func",
    "topk_method",
    "hidden_act",
    "attention_bias",
    "rope_interleave",
    "rope_scaling",
    "tie_word_embeddings",
    "moe_layer_freq",
)


def publish_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of `config.json`, without token ids and dtype."""
    heads = {"num_key_value_heads": config.num_attention_heads}
    return _CONSTANTS | config.model_dump() | heads


def read_config(published: Mapping[str, Any]) -> ModelConfig:
    """The model that a `config.json` describes; ConfigError where it asks for what is not built."""
    if published.get("model_type") != MODEL_TYPE:
        raise ConfigError(
            at="config.json model_type",
            got=repr(published.get("model_type")),
            want=f"a known family: {MODEL_TYPE}",
        )
    for key in _REQUIRED_CONSTANTS:
        if published.get(key, _CONSTANTS[key]) != _CONSTANTS[key]:
            raise ConfigError(
                at=f"config.json {key}", got=repr(published[key]), want=repr(_CONSTANTS[key])
            )
    known = ModelConfig.model_fields
    return ModelConfig(**{k: v for k, v in published.items() if k in known})


def publish_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict with stacked experts split into the published per-expert keys."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, dot, leaf = name.rpartition(".experts.")
        if not dot:
            out[name] = tensor.contiguous()
            continue
        for e in range(len(tensor)):
            if leaf == "gate_up":
                out[f"{prefix}.experts.{e}.gate_proj.weight"] = tensor[e, 0].contiguous()
                out[f"{prefix}.experts.{e}.up_proj.weight"] = tensor[e, 1].contiguous()
            else:
                out[f"{prefix}.experts.{e}.down_proj.weight"] = tensor[e].contiguous()
    return out


def read_weights(published: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The reverse of `publish_weights`. A missing key raises KeyError with its name."""
    out = {k: v for k, v in published.items() if ".experts." not in k}
    for layer in range(config.num_hidden_layers):
        if not config.is_moe(layer):
            continue
        prefix = f"model.layers.{layer}.mlp.experts"
        each = [
            {leaf: published[f"{prefix}.{e}.{leaf}_proj.weight"] for leaf in ("gate", "up", "down")}
            for e in range(config.n_routed_experts)
        ]
        out[f"{prefix}.gate_up"] = torch.stack([torch.stack([w["gate"], w["up"]]) for w in each])
        out[f"{prefix}.down"] = torch.stack([w["down"] for w in each])
    return out
