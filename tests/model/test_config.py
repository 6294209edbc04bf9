import pytest
from pydantic import ValidationError

from nalar.config import ConfigError
from nalar.model.config import ModelConfig, RopeScaling

SIZES = {
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
LATENT = SIZES | {
    "kv_lora_rank": 4,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 4,
}
GROUPED = SIZES | {"kv_lora_rank": None, "num_key_value_heads": 2, "head_dim": 6}
MIXTURE = LATENT | {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 4}


@pytest.mark.parametrize(
    ("fields", "change", "at"),
    [
        (LATENT, {"v_head_dim": None}, "v_head_dim"),
        (LATENT, {"head_dim": 4}, "head_dim"),
        (LATENT, {"num_key_value_heads": 4}, "num_key_value_heads"),
        (LATENT, {"qk_rope_head_dim": 3}, "rotary_dim"),
        (LATENT, {"attention_bias": True}, "attention_bias"),
        (LATENT, {"qk_norm": True}, "qk_norm"),
        (GROUPED, {"num_key_value_heads": 3}, "num_key_value_heads"),
        (GROUPED, {"num_key_value_heads": None}, "num_key_value_heads"),
        (GROUPED, {"head_dim": 5}, "rotary_dim"),
        (GROUPED, {"q_lora_rank": 4}, "q_lora_rank"),
        (GROUPED, {"attention_bias": True, "qkv_bias": True}, "qkv_bias"),
        (MIXTURE, {"moe_intermediate_size": 0}, "moe_intermediate_size"),
        (MIXTURE, {"num_experts_per_tok": 0}, "num_experts_per_tok"),
        (MIXTURE, {"num_experts_per_tok": 9}, "num_experts_per_tok"),
        (MIXTURE, {"mlp_only_layers": (4,)}, "mlp_only_layers"),
        (MIXTURE, {"n_group": 3}, "n_group"),
        (MIXTURE, {"n_group": 8, "topk_group": 4}, "n_group"),
        (MIXTURE, {"n_group": 4, "topk_group": 5}, "topk_group"),
        (MIXTURE, {"n_group": 4, "topk_group": 1}, "topk_group"),
        (MIXTURE, {"n_group": 2, "topk_group": 1, "topk_method": "greedy"}, "topk_method"),
    ],
)
def test_fields_that_disagree_are_refused_by_name(fields, change, at):
    ModelConfig(**fields)
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**(fields | change))
    assert caught.value.at == f"model.{at}"


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": float("nan")},
        {"rms_norm_eps": -1.0},
        {"routed_scaling_factor": float("inf")},
        {"rope_theta": float("inf")},
        {"logits_scaling": float("inf")},
        {"embedding_multiplier": float("nan")},
        {"residual_multiplier": float("nan")},
        {"attention_multiplier": float("inf")},
        {"max_position_embeddings": 10**30},  # its table of rotations would not fit anywhere
    ],
)
def test_numbers_that_no_model_can_compute_with_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        ModelConfig(**(MIXTURE | change))


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"rope_type": "llama3"}, "high_freq_factor"),
        (
            {"rope_type": "llama3", "low_freq_factor": 4.0, "high_freq_factor": 1.0},
            "high_freq_factor",
        ),
        (
            {
                "rope_type": "llama3",
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "mscale": 1.0,
            },
            "mscale",
        ),
        ({"rope_type": "yarn", "low_freq_factor": 1.0}, "low_freq_factor"),
    ],
)
def test_numbers_of_another_rule_of_scaling_are_refused(change, at):
    with pytest.raises(ConfigError) as caught:
        RopeScaling(factor=2.0, original_max_position_embeddings=32, **change)
    assert caught.value.at == f"model.rope_scaling.{at}"


def test_a_token_keeps_its_latent_or_its_keys_and_values():
    assert ModelConfig(**LATENT).cache_dim == 4 + 2
    assert ModelConfig(**GROUPED).cache_dim == 2 * 2 * 6


@pytest.mark.parametrize(
    ("change", "mixtures"),
    [
        ({}, [1, 2, 3]),
        ({"first_k_dense_replace": 0}, [0, 1, 2, 3]),
        ({"first_k_dense_replace": 0, "decoder_sparse_step": 2}, [1, 3]),
        ({"first_k_dense_replace": 2, "mlp_only_layers": (3,)}, [2]),
        ({"n_routed_experts": 0}, []),
    ],
)
def test_which_layers_are_mixtures(change, mixtures):
    config = ModelConfig(**(MIXTURE | change))
    assert [layer for layer in range(4) if config.is_moe(layer)] == mixtures
