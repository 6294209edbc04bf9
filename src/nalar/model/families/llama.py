"""Llama, and the models distilled from R1 in its form."""

from nalar.model.families.family import SIZES, SIZES_DEFAULTS, Family, same
from nalar.model.families.placement import grouped_attention

GROUPED = {"kv_lora_rank": None, "rope_interleave": False, "n_shared_experts": 0}
"""What all families with grouped-query attention leave unsaid."""

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields=SIZES | same("num_key_value_heads", "head_dim", "attention_bias"),
    defaults={
        **SIZES_DEFAULTS,
        "num_key_value_heads": None,
        "head_dim": None,
        "attention_bias": False,
    },
    implied=GROUPED,
    fixed={"hidden_act": "silu", "mlp_bias": False},
    attention=grouped_attention,
)
