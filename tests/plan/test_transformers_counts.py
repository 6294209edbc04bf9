"""The count of every family, held against transformers' own classes, on the meta device."""

import random

import pytest
import torch

from nalar.model.config import ModelConfig
from nalar.model.families.registry import FAMILIES
from nalar.plan.model import count_parameters
from nalar.plan.published import PUBLISHED

transformers = pytest.importorskip("transformers")
LATENT = ("deepseek_v3", "kimi_k2")
OTHER_NAMES = {"kimi_k2": "deepseek_v3"}
"""Families that transformers reads under the name of another."""


def held_by_transformers(config: ModelConfig) -> int:
    """Parameters and balance biases of the class that a published config of this model makes."""
    fields = FAMILIES[config.model_type].publish_config(config)
    model_type = OTHER_NAMES.get(config.model_type, config.model_type)
    theirs = transformers.AutoConfig.for_model(**fields | {"model_type": model_type})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs)
    assert type(model).__name__ == FAMILIES[config.model_type].architecture
    biases = [b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]
    return sum(tensor.numel() for tensor in [*model.parameters(), *biases])


def random_config(family: str, seed: int) -> ModelConfig:
    """Tiny, and like no other: every width is drawn on its own, so that no two can stand for each other."""
    draw = random.Random(f"{family} {seed}")
    layers = draw.randint(2, 5)
    config = {
        "model_type": family,
        "vocab_size": draw.randint(50, 90),
        "hidden_size": 8 * draw.randint(2, 5),
        "intermediate_size": draw.randint(10, 40),
        "num_hidden_layers": layers,
        "tie_word_embeddings": draw.random() < 0.5,
    }
    config |= latent_heads(draw) if family in LATENT else grouped_heads(draw, family)
    if family in (*LATENT, "qwen3_moe", "granitemoe"):
        config |= mixture(draw, family, layers)
    if family == "granitemoe":
        config["intermediate_size"] = config["moe_intermediate_size"]
    if family.startswith("granite"):
        config["attention_multiplier"] = 0.1
    return ModelConfig(**config)


def latent_heads(draw: random.Random) -> dict[str, object]:
    return {
        "num_attention_heads": draw.randint(1, 4),
        "q_lora_rank": draw.choice([None, draw.randint(3, 9)]),
        "kv_lora_rank": draw.randint(3, 9),
        "qk_nope_head_dim": draw.randint(3, 9),
        "qk_rope_head_dim": 2 * draw.randint(1, 4),
        "v_head_dim": draw.randint(3, 9),
    }


def grouped_heads(draw: random.Random, family: str) -> dict[str, object]:
    kv_heads = draw.randint(1, 3)
    heads = kv_heads * draw.randint(1, 3)
    return {
        "hidden_size": heads
        * draw.randint(3, 9),  # transformers wants a multiple of the heads for Llama
        "kv_lora_rank": None,
        "num_key_value_heads": kv_heads,
        "num_attention_heads": heads,
        "head_dim": 2 * draw.randint(2, 6),
        "rope_interleave": False,
        "n_shared_experts": 0,
        "qk_norm": family.startswith("qwen3"),
        "qkv_bias": family == "qwen2",
        "attention_bias": family != "qwen2" and draw.random() < 0.5,
    }


def mixture(draw: random.Random, family: str, layers: int) -> dict[str, object]:
    experts = draw.randint(3, 7)
    fields: dict[str, object] = {
        "n_routed_experts": experts,
        "num_experts_per_tok": draw.randint(1, experts),
        "moe_intermediate_size": draw.randint(3, 9),
    }
    if family in LATENT:
        shared = {"n_shared_experts": draw.randint(1, 3)}
        return fields | shared | {"first_k_dense_replace": draw.randint(0, layers)}
    fields |= {"first_k_dense_replace": 0, "scoring_func": "softmax", "topk_method": "greedy"}
    if family == "qwen3_moe":
        fields["decoder_sparse_step"] = draw.randint(1, 2)
        fields["mlp_only_layers"] = tuple(draw.sample(range(layers), k=1))
    return fields


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_random_models_of_every_family(family, seed):
    config = random_config(family, seed)
    count = count_parameters(config)
    assert count.total_params + count.balance_params == held_by_transformers(config)


@pytest.mark.few(8)  # test_published.py holds totals against those of the released weights
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_at_their_full_size(name):
    config = PUBLISHED[name].config
    if (
        config.kv_lora_rank is None
    ):  # what a family says in so many words, and sizes do not follow from
        scale = {"attention_multiplier": 0.1} if config.model_type.startswith("granite") else {}
        config = config.model_copy(update={"rope_interleave": False, **scale})
    count = count_parameters(config)
    assert count.total_params + count.balance_params == held_by_transformers(config)
