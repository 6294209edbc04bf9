"""Qwen 2 and 2.5, Qwen 3 dense and with experts; R1's distilled Qwen models are of the first."""

from nalar.model.families.family import SIZES, SIZES_DEFAULTS, Family, same
from nalar.model.families.llama import GROUPED
from nalar.model.families.placement import grouped_attention, split_experts

_NO_WINDOW = {"use_sliding_window": False, "sliding_window": None}

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fields=SIZES | same("num_key_value_heads", "head_dim"),
    defaults={**SIZES_DEFAULTS, "num_key_value_heads": 32, "head_dim": None},
    implied={**GROUPED, "qkv_bias": True},
    fixed={"hidden_act": "silu"},
    only={"use_mrope": False},
    written=_NO_WINDOW,
    attention=grouped_attention,
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fields=SIZES | same("num_key_value_heads", "head_dim", "attention_bias"),
    defaults={
        **SIZES_DEFAULTS,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "attention_bias": False,
    },
    implied={**GROUPED, "qk_norm": True},
    fixed={"hidden_act": "silu"},
    written=_NO_WINDOW,
    attention=grouped_attention,
)
QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    fields=SIZES
    | same(
        "num_key_value_heads",
        "head_dim",
        "attention_bias",
        "moe_intermediate_size",
        "num_experts_per_tok",
        "decoder_sparse_step",
        "mlp_only_layers",
        "norm_topk_prob",
    )
    | {"num_experts": "n_routed_experts"},
    aliases={"num_local_experts": "num_experts"},
    defaults={
        **SIZES_DEFAULTS,
        "num_key_value_heads": 4,
        "head_dim": None,
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": (),
        "norm_topk_prob": False,
    },
    implied={
        **GROUPED,
        "qk_norm": True,
        "first_k_dense_replace": 0,
        "scoring_func": "softmax",
        "topk_method": "greedy",
    },
    fixed={"hidden_act": "silu"},
    written=_NO_WINDOW,
    attention=grouped_attention,
    mixture=split_experts,
)
