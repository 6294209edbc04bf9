"""Published models by name: the fields of their `config.json` that sizes follow from, and no others.

What changes a model's output and not its size (rotary base and scaling, multipliers, scaling of the router's weights)
is left at its default, so these are configs to count with and not to build a model from: for that, read its folder.
Every field was read in public copies of the repository's `config.json` and, where there was one, held against a second
source; `docs/sizes.md` says more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nalar.model.config import ModelConfig


@dataclass(frozen=True)
class Published:
    """A model as its authors released it."""

    source: str
    """The repository on huggingface.co that holds the weights."""
    config: ModelConfig


def _published(source: str, *shared: Mapping[str, Any], **own: Any) -> Published:
    fields: dict[str, Any] = {}
    for part in (*shared, own):
        fields |= part
    return Published(source, ModelConfig(**fields))


# Latent attention: heads of 128 numbers without rotation, 64 with, and 128 of values, from a latent of 512.
_LATENT = {
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_DEEPSEEK_V3 = _LATENT | {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "num_nextn_predict_layers": 1,
}
_KIMI_K2 = _DEEPSEEK_V3 | {
    "model_type": "kimi_k2",
    "vocab_size": 163840,
    "num_attention_heads": 64,
    "n_routed_experts": 384,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
}

# Experts in every layer, none shared, and no bias that steers their choice.
_SOFTMAX_ROUTER = {
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 0,
    "scoring_func": "softmax",
    "topk_method": "greedy",
}
_GROUPED = {"kv_lora_rank": None, "n_shared_experts": 0}
_QWEN2 = _GROUPED | {"model_type": "qwen2", "qkv_bias": True}
_QWEN25_0_5B = _QWEN2 | {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
_QWEN25_1_5B = _QWEN2 | {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_dim": 128,
}
_QWEN25_3B = _QWEN2 | {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
}
_QWEN25_7B = _QWEN2 | {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
_QWEN25_14B = _QWEN2 | {
    "vocab_size": 152064,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_QWEN25_32B = _QWEN25_14B | {"intermediate_size": 27648, "num_hidden_layers": 64}
_QWEN25_72B = _QWEN2 | {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_TIED = {"tie_word_embeddings": True}

_QWEN3 = _GROUPED | {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "qk_norm": True,
}
_QWEN3_MOE = _QWEN3 | {
    "model_type": "qwen3_moe",
    **_SOFTMAX_ROUTER,
}

_LLAMA31 = _GROUPED | {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_LLAMA31_8B = _LLAMA31 | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_LLAMA31_70B = _LLAMA31 | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}

_GRANITE33 = (
    _GROUPED
    | _TIED
    | {
        "model_type": "granite",
        "vocab_size": 49159,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
)
_GRANITEMOE31 = (
    _GROUPED
    | _TIED
    | {
        "model_type": "granitemoe",
        "vocab_size": 49155,
        "intermediate_size": 512,
        "moe_intermediate_size": 512,
        "num_key_value_heads": 8,
        "head_dim": 64,
        **_SOFTMAX_ROUTER,
    }
)

PUBLISHED: Mapping[str, Published] = {
    "deepseek-v3": _published("deepseek-ai/DeepSeek-V3", _DEEPSEEK_V3),
    "deepseek-r1": _published("deepseek-ai/DeepSeek-R1", _DEEPSEEK_V3),
    "deepseek-r1-zero": _published("deepseek-ai/DeepSeek-R1-Zero", _DEEPSEEK_V3),
    "kimi-k2": _published("moonshotai/Kimi-K2-Instruct", _KIMI_K2),
    "kimi-k2-thinking": _published("moonshotai/Kimi-K2-Thinking", _KIMI_K2),
    "moonlight-16b-a3b": _published(
        "moonshotai/Moonlight-16B-A3B",
        _LATENT,
        vocab_size=163840,
        hidden_size=2048,
        intermediate_size=11264,
        moe_intermediate_size=1408,
        num_hidden_layers=27,
        num_attention_heads=16,
        n_routed_experts=64,
        num_experts_per_tok=6,
        n_shared_experts=2,
    ),
    "qwen3-0.6b": _published(
        "Qwen/Qwen3-0.6B",
        _QWEN3,
        _TIED,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
    ),
    "qwen3-1.7b": _published(
        "Qwen/Qwen3-1.7B",
        _QWEN3,
        _TIED,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
    ),
    "qwen3-4b": _published(
        "Qwen/Qwen3-4B",
        _QWEN3,
        _TIED,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
    ),
    "qwen3-8b": _published(
        "Qwen/Qwen3-8B",
        _QWEN3,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
    ),
    "qwen3-14b": _published(
        "Qwen/Qwen3-14B",
        _QWEN3,
        hidden_size=5120,
        intermediate_size=17408,
        num_hidden_layers=40,
        num_attention_heads=40,
    ),
    "qwen3-32b": _published(
        "Qwen/Qwen3-32B",
        _QWEN3,
        hidden_size=5120,
        intermediate_size=25600,
        num_hidden_layers=64,
        num_attention_heads=64,
    ),
    "qwen3-30b-a3b": _published(
        "Qwen/Qwen3-30B-A3B",
        _QWEN3_MOE,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        n_routed_experts=128,
    ),
    "qwen3-235b-a22b": _published(
        "Qwen/Qwen3-235B-A22B",
        _QWEN3_MOE,
        hidden_size=4096,
        intermediate_size=12288,
        moe_intermediate_size=1536,
        num_hidden_layers=94,
        num_attention_heads=64,
        num_key_value_heads=4,
        n_routed_experts=128,
    ),
    "qwen3-coder-480b-a35b": _published(
        "Qwen/Qwen3-Coder-480B-A35B-Instruct",
        _QWEN3_MOE,
        hidden_size=6144,
        intermediate_size=8192,
        moe_intermediate_size=2560,
        num_hidden_layers=62,
        num_attention_heads=96,
        n_routed_experts=160,
    ),
    "qwen2.5-0.5b": _published("Qwen/Qwen2.5-0.5B", _QWEN25_0_5B, _TIED),
    "qwen2.5-1.5b": _published("Qwen/Qwen2.5-1.5B", _QWEN25_1_5B, _TIED),
    "qwen2.5-3b": _published("Qwen/Qwen2.5-3B", _QWEN25_3B, _TIED),
    "qwen2.5-7b": _published("Qwen/Qwen2.5-7B", _QWEN25_7B),
    "qwen2.5-14b": _published("Qwen/Qwen2.5-14B", _QWEN25_14B),
    "qwen2.5-32b": _published("Qwen/Qwen2.5-32B", _QWEN25_32B),
    "qwen2.5-72b": _published("Qwen/Qwen2.5-72B", _QWEN25_72B),
    # Heads are their own here, where Qwen2.5 of 1.5B ties its head to the embedding.
    "deepseek-r1-distill-qwen-1.5b": _published(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", _QWEN25_1_5B
    ),
    "deepseek-r1-distill-qwen-7b": _published(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", _QWEN25_7B
    ),
    "deepseek-r1-distill-qwen-14b": _published(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", _QWEN25_14B
    ),
    "deepseek-r1-distill-qwen-32b": _published(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", _QWEN25_32B
    ),
    "deepseek-r1-distill-llama-8b": _published(
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", _LLAMA31_8B
    ),
    "deepseek-r1-distill-llama-70b": _published(
        "deepseek-ai/DeepSeek-R1-Distill-Llama-70B", _LLAMA31_70B
    ),
    "llama-3.1-8b": _published("meta-llama/Llama-3.1-8B", _LLAMA31_8B),
    "llama-3.1-70b": _published("meta-llama/Llama-3.1-70B", _LLAMA31_70B),
    "granite-3.3-2b": _published(
        "ibm-granite/granite-3.3-2b-instruct",
        _GRANITE33,
        hidden_size=2048,
        intermediate_size=8192,
        head_dim=64,
    ),
    "granite-3.3-8b": _published(
        "ibm-granite/granite-3.3-8b-instruct",
        _GRANITE33,
        hidden_size=4096,
        intermediate_size=12800,
        head_dim=128,
    ),
    "granite-3.1-1b-a400m": _published(
        "ibm-granite/granite-3.1-1b-a400m-instruct",
        _GRANITEMOE31,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        n_routed_experts=32,
    ),
    "granite-3.1-3b-a800m": _published(
        "ibm-granite/granite-3.1-3b-a800m-instruct",
        _GRANITEMOE31,
        hidden_size=1536,
        num_hidden_layers=32,
        num_attention_heads=24,
        n_routed_experts=40,
    ),
}
