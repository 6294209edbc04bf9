"""Published configs, as released, become models and are published again."""

import pytest

from nalar.config import ConfigError
from nalar.model.config import ModelConfig
from nalar.model.families.registry import FAMILIES, family_of

COMMON = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": True,
}
YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
DEEPSEEK_V3 = COMMON | {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-6,
    "rope_scaling": YARN,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
GROUPED = COMMON | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 160,
}
NO_WINDOW = {"max_window_layers": 2, "sliding_window": 512, "use_sliding_window": False}
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.015625,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
PUBLISHED = {
    "deepseek_v3": DEEPSEEK_V3,
    "kimi_k2": DEEPSEEK_V3
    | {
        "model_type": "kimi_k2",
        "first_k_dense_replace": 1,
        "n_routed_experts": 384,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
        "rope_scaling": YARN | {"beta_fast": 1.0, "factor": 32.0},
    },
    "qwen2": GROUPED | NO_WINDOW | {"model_type": "qwen2"},
    "qwen3": GROUPED | NO_WINDOW | {"model_type": "qwen3", "head_dim": 32},
    "qwen3_moe": GROUPED
    | NO_WINDOW
    | {
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "head_dim": 32,
        "mlp_only_layers": [],
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.001,
    },
    "llama": GROUPED
    | {
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
    "granite": GROUPED | MULTIPLIERS | {"model_type": "granite", "rope_scaling": None},
    "granitemoe": GROUPED
    | MULTIPLIERS
    | {
        "model_type": "granitemoe",
        "intermediate_size": 32,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
}
each_family = pytest.mark.parametrize("model_type", sorted(PUBLISHED))


def read(published: dict) -> ModelConfig:
    return family_of(published).read_config(published)


def test_every_family_is_tested_here():
    assert PUBLISHED.keys() == FAMILIES.keys()


@each_family
def test_a_config_survives_being_published_and_read_again(model_type):
    config = read(PUBLISHED[model_type])
    again = FAMILIES[model_type].publish_config(config)
    assert config.model_type == model_type
    assert read(again) == config


@each_family
def test_what_is_published_says_what_was_read(model_type):
    published = PUBLISHED[model_type]
    again = FAMILIES[model_type].publish_config(read(published))
    for key in again.keys() & published.keys() - {"rope_scaling", "sliding_window"}:
        assert again[key] == published[key], key


@each_family
def test_the_spelling_of_transformers_5_means_the_same(model_type):
    published = dict(PUBLISHED[model_type])
    theta, scaling = published.pop("rope_theta"), published.pop("rope_scaling", None) or {}
    kind = {"rope_type": scaling.get("rope_type", scaling.get("type", "default"))}
    published["rope_parameters"] = {"rope_theta": theta} | scaling | kind
    assert read(published) == read(PUBLISHED[model_type])


@each_family
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "low_freq_factor": 1.0}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("partial_rotary_factor", 0.5),
        ("qk_layernorm", True),
        ("vocab_size", None),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("num_hidden_layers", "many"),
    ],
)
def test_a_field_that_would_change_the_output_is_refused_by_name(model_type, key, value):
    published = PUBLISHED[model_type] | {key: value}
    if "scaling" not in key:
        published = {
            k: v for k, v in published.items() if key != "rope_parameters" or k != "rope_scaling"
        }
    with pytest.raises(ConfigError) as caught:
        read({k: v for k, v in published.items() if k != "rope_theta" or key != "rope_parameters"})
    assert key in caught.value.at or key.split("_")[0] == "rope"


def test_a_window_is_refused_only_where_it_cuts_something_off():
    window = {"use_sliding_window": True, "sliding_window": 512}
    with pytest.raises(ConfigError, match="window of 512"):
        read(PUBLISHED["qwen2"] | window)
    assert read(PUBLISHED["qwen2"] | window | {"sliding_window": 1024})


def test_an_unknown_family_is_an_error_that_lists_those_known():
    with pytest.raises(ConfigError) as caught:
        family_of({"model_type": "deepseek_v2"})
    for name in FAMILIES:
        assert name in str(caught.value)
    assert caught.value.hint == "did you mean 'deepseek_v3'?"


def test_a_config_that_a_family_has_no_words_for_is_not_published_in_it():
    config = read(PUBLISHED["deepseek_v3"])
    with pytest.raises(ConfigError, match="scoring_func"):
        FAMILIES["deepseek_v3"].publish_config(
            config.model_copy(update={"scoring_func": "softmax"})
        )
    llama = read(PUBLISHED["llama"])
    with pytest.raises(ConfigError, match="logits_scaling"):
        FAMILIES["llama"].publish_config(llama.model_copy(update={"logits_scaling": 2.0}))
    with pytest.raises(ConfigError, match="qkv_bias"):
        FAMILIES["qwen2"].publish_config(llama)


@each_family
def test_no_key_and_no_byte_is_placed_twice(model_type):
    small = {"num_hidden_layers": 4, "n_routed_experts": 16, "num_experts": 16}
    published = PUBLISHED[model_type] | {
        k: v for k, v in small.items() if k in PUBLISHED[model_type]
    }
    config = read(published)
    placed = list(FAMILIES[model_type].placements(config))
    assert len({p.key for p in placed}) == len(placed)
    first = [(p.name, p.index) for p in placed if not p.is_copy]
    assert len(set(first)) == len(first)


def test_defaults_are_those_of_the_families_own_code():
    transformers = pytest.importorskip("transformers")
    for name, family in FAMILIES.items():
        if name == "kimi_k2":
            continue
        theirs = transformers.AutoConfig.for_model(name).to_dict()
        for key, value in family.defaults.items():
            if key in ("n_group", "topk_group", "q_lora_rank", "num_nextn_predict_layers"):
                continue  # always spelled out by DeepSeek; their defaults are those of one model
            if value is not None and key in theirs:
                got = theirs[key]
                assert (tuple(got) if isinstance(got, list) else got) == value, (name, key)
