"""Granite, dense and with experts: Llama's blocks between four multipliers."""

from nalar.model.families.family import SIZES, SIZES_DEFAULTS, Family, same
from nalar.model.families.llama import GROUPED
from nalar.model.families.placement import grouped_attention, stacked_experts

_FIELDS = SIZES | same(
    "num_key_value_heads",
    "head_dim",
    "attention_bias",
    "embedding_multiplier",
    "attention_multiplier",
    "residual_multiplier",
    "logits_scaling",
)
_DEFAULTS = {
    **SIZES_DEFAULTS,
    "num_key_value_heads": None,
    "head_dim": None,
    "attention_bias": False,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}

GRANITE = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    fields=_FIELDS,
    defaults=_DEFAULTS,
    implied=GROUPED,
    fixed={"hidden_act": "silu", "mlp_bias": False},
    attention=grouped_attention,
)
GRANITEMOE = Family(
    model_type="granitemoe",
    architecture="GraniteMoeForCausalLM",
    # Every layer is a mixture, and its published intermediate_size is the width of one expert.
    fields=_FIELDS
    | same("num_experts_per_tok")
    | {"intermediate_size": "moe_intermediate_size", "num_local_experts": "n_routed_experts"},
    equal={"intermediate_size": "moe_intermediate_size"},
    defaults=_DEFAULTS,
    # The softmax of the chosen logits alone is the softmax of all, divided by the sum of the chosen.
    implied={
        **GROUPED,
        "first_k_dense_replace": 0,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "norm_topk_prob": True,
    },
    fixed={"hidden_act": "silu"},
    attention=grouped_attention,
    mixture=stacked_experts,
)
