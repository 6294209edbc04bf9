"""DeepSeek-V3, R1, R1-Zero, Moonlight; and Kimi K2, which is the same model under another name."""

from dataclasses import replace

from nalar.model.families.family import SIZES, SIZES_DEFAULTS, Family, same
from nalar.model.families.placement import latent_attention, split_experts

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    fields=SIZES
    | same(
        "moe_intermediate_size",
        "n_routed_experts",
        "num_experts_per_tok",
        "n_shared_experts",
        "first_k_dense_replace",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "n_group",
        "topk_group",
        "norm_topk_prob",
        "routed_scaling_factor",
        "rope_interleave",
        "num_nextn_predict_layers",
    ),
    defaults={
        **SIZES_DEFAULTS,
        "q_lora_rank": 1536,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "rope_interleave": True,
        "num_nextn_predict_layers": 0,
    },
    # Written in full because engines default them wrongly (vLLM: softmax scores, no balance bias).
    fixed={
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "hidden_act": "silu",
        "attention_bias": False,
        "moe_layer_freq": 1,
    },
    # Of losses, of how a run was spread over machines, and what transformers derives from other fields.
    harmless=frozenset(("aux_loss_alpha", "seq_aux", "ep_size", "qk_head_dim")),
    attention=latent_attention,
    mixture=split_experts,
)
KIMI_K2 = replace(DEEPSEEK_V3, model_type="kimi_k2")
