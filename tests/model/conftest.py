import pytest

from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer


@pytest.fixture(params=[None, 24], ids=["plain_queries", "compressed_queries"])
def tiny_config(request: pytest.FixtureRequest) -> ModelConfig:
    return ModelConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        n_routed_experts=6,
        num_experts_per_tok=2,
        n_shared_experts=1,
        q_lora_rank=request.param,
        kv_lora_rank=20,
        qk_nope_head_dim=12,
        qk_rope_head_dim=8,
        v_head_dim=16,
        routed_scaling_factor=1.7,
        max_position_embeddings=128,
        initializer_range=0.15,
    )


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> Transformer:
    model = Transformer(tiny_config)
    model.initialize(seed=0)
    for i, router in enumerate(model.routers()):
        # a bias that changes who is chosen, so that a test notices if it leaked into the weights
        router.e_score_correction_bias.copy_(((0.05 * i) + 0.1) * router.weight.detach()[:, 0])
    return model
