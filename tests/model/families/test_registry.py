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
    ("key", "value", "at"),
    [
        ("hidden_act", "gelu", "hidden_act"),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}, "rope_scaling.rope_type"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling.rope_type"),
        (
            "rope_scaling",
            {"rope_type": "yarn", "factor": 2.0, "low_freq_factor": 1.0},
            "rope_scaling.low_freq_factor",
        ),
        ("rope_scaling", {"rope_type": "yarn"}, "rope_scaling.factor"),
        ("rope_scaling", {"rope_type": "yarn", "factor": "much"}, "rope_scaling.factor"),
        ("rope_scaling", "yarn", "rope_scaling"),
        ("partial_rotary_factor", 0.5, "partial_rotary_factor"),
        ("qk_layernorm", True, "qk_layernorm"),
        ("vocab_size", None, "vocab_size"),
        ("layer_types", ["full_attention", "sliding_attention"], "layer_types"),
        ("num_hidden_layers", "many", "num_hidden_layers"),
    ],
)
def test_a_field_that_would_change_the_output_is_refused_by_name(model_type, key, value, at):
    with pytest.raises(ConfigError) as caught:
        read(PUBLISHED[model_type] | {key: value})
    assert caught.value.at == f"config.json {at}"


def test_two_spellings_of_rope_must_agree():
    new = {"rope_type": "default", "rope_theta": 5.0}
    with pytest.raises(ConfigError, match="rope_theta"):
        read(PUBLISHED["granite"] | {"rope_parameters": new})
    with pytest.raises(ConfigError, match="rope_parameters"):
        read(PUBLISHED["llama"] | {"rope_parameters": new})


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
    for name in FAMILIES.keys() - {"kimi_k2"}:
        theirs = transformers.AutoConfig.for_model(name).to_dict()
        # Where nothing is said of draft heads there are none; absent heads are worked out from others.
        passed_over = {"num_nextn_predict_layers"} | {
            key
            for key in ("head_dim", "num_key_value_heads")
            if FAMILIES[name].defaults.get(key) is None
        }
        for key in FAMILIES[name].defaults.keys() - passed_over:
            got = theirs[key]
            value = tuple(got) if isinstance(got, list) else got
            assert value == FAMILIES[name].defaults[key], (name, key)


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"deepseek_v3", "kimi_k2"}))
def test_heads_that_a_config_leaves_out_are_worked_out(name):
    published = {k: v for k, v in PUBLISHED[name].items() if k != "head_dim"}
    config = read(published | {"num_key_value_heads": None})
    assert config.num_key_value_heads == 4
    assert config.head_dim == (128 if name == "qwen3" else 16)


def test_the_factor_of_r1_0528_qwen3_8b_is_heeded():
    """Its yarn is meant to leave cosines and sines as they are; transformers passes over attn_factor."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    scaling = yarn | {"attn_factor": 0.8782488562869419}
    config = read(PUBLISHED["qwen3"] | {"rope_scaling": scaling})
    assert config.rope_scaling.attention_factor == pytest.approx(1.0, abs=1e-12)
    again = FAMILIES["qwen3"].publish_config(config)["rope_scaling"]
    assert again["attn_factor"] == pytest.approx(0.8782488562869419)
    with pytest.raises(ConfigError, match="attn_factor"):
        read(PUBLISHED["qwen3"] | {"rope_scaling": scaling | {"attention_factor": 1.2}})


def test_a_mixture_of_no_experts_is_published_as_dense():
    config = read(PUBLISHED["deepseek_v3"]).model_copy(update={"n_routed_experts": 0})
    published = FAMILIES["deepseek_v3"].publish_config(config)
    # the block of multi-token prediction behind the layers is dense as well
    depth = config.num_hidden_layers + config.num_nextn_predict_layers
    assert published["first_k_dense_replace"] == depth


def test_latent_attention_has_as_many_keys_as_heads():
    with pytest.raises(ConfigError, match="num_key_value_heads"):
        read(PUBLISHED["deepseek_v3"] | {"num_key_value_heads": 8})


@pytest.mark.parametrize("missing", ["hidden_size", "kv_lora_rank", "max_position_embeddings"])
def test_a_size_that_is_missing_is_named(missing):
    published = {k: v for k, v in PUBLISHED["deepseek_v3"].items() if k != missing}
    with pytest.raises(ConfigError, match=missing):
        read(published)
