"""Parameters named and shaped as those of a tiny deepseek_v3, without the model."""

import pytest
import torch

# hidden 16 · 2 heads · nope 6, rope 2, value 8 · latent 8 · dense 24 · 4 experts of 12
SHAPES = {
    "model.embed_tokens.weight": (32, 16),
    "lm_head.weight": (32, 16),
    "model.norm.weight": (16,),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.0.post_attention_layernorm.weight": (16,),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": (10, 16),
    "model.layers.0.self_attn.kv_a_layernorm.weight": (8,),
    "model.layers.0.self_attn.kv_b_proj.weight": (28, 8),
    "model.layers.0.self_attn.o_proj.weight": (16, 16),
    "model.layers.0.mlp.gate_proj.weight": (24, 16),
    "model.layers.0.mlp.up_proj.weight": (24, 16),
    "model.layers.0.mlp.down_proj.weight": (16, 24),
    "model.layers.1.self_attn.q_a_proj.weight": (8, 16),
    "model.layers.1.self_attn.q_a_layernorm.weight": (8,),
    "model.layers.1.self_attn.q_b_proj.weight": (16, 8),
    "model.layers.1.mlp.gate.weight": (4, 16),
    "model.layers.1.mlp.experts.gate_up": (4, 2, 12, 16),
    "model.layers.1.mlp.experts.down": (4, 16, 12),
    "model.layers.1.mlp.shared_experts.gate_proj.weight": (12, 16),
    "model.layers.1.mlp.shared_experts.up_proj.weight": (12, 16),
    "model.layers.1.mlp.shared_experts.down_proj.weight": (16, 12),
}


class TinyParameters:
    """Makes parameters, and gradients for them."""

    shapes = SHAPES
    router = "model.layers.1.mlp.gate.weight"
    adamw = frozenset(n for n in SHAPES if "norm" in n or "embed" in n or "lm_head" in n)

    def make(self, seed=0, dtype=torch.float32, device="cpu"):
        """Fresh parameters without gradients."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.nn.Parameter(
                (torch.randn(shape, generator=generator) * 0.1).to(device, dtype)
            )
            for name, shape in SHAPES.items()
        }

    def set_gradients(self, parameters, seed, scale=0.01):
        """Random gradients, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        for name, shape in SHAPES.items():
            gradient = torch.randn(shape, generator=generator) * scale
            parameters[name].grad = gradient.to(parameters[name])


@pytest.fixture
def tiny():
    return TinyParameters()
