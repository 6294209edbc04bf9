from collections.abc import Callable

import pytest
import torch

from nalar.kernels.documents import Documents
from nalar.kernels.paging import Chunk, Paging
from nalar.model.config import ModelConfig, RopeScaling
from nalar.model.transformer import Transformer

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
}
LATENT = SIZES | {
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 1.7,
}
GROUPED = SIZES | {
    "kv_lora_rank": None,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_interleave": False,
    "n_shared_experts": 0,
}
SOFTMAX = {
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "first_k_dense_replace": 0,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 6.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = RopeScaling(
    rope_type="llama3",
    factor=8.0,
    original_max_position_embeddings=32,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)

# Every family in at least one form, and every feature in at least one family.
TINY_FAMILIES: dict[str, ModelConfig] = {
    "deepseek_v3": ModelConfig(
        **LATENT,
        q_lora_rank=24,
        n_group=4,
        topk_group=2,
        rope_scaling=RopeScaling(**YARN, mscale=1.0, mscale_all_dim=1.0),
    ),
    "deepseek_v3-moonlight": ModelConfig(**LATENT, n_shared_experts=2, rms_norm_eps=1e-5),
    "deepseek_v3-other_order": ModelConfig(
        **LATENT,
        q_lora_rank=24,
        rope_interleave=False,
        norm_topk_prob=False,
        tie_word_embeddings=True,
        rope_scaling=RopeScaling(**YARN, mscale=0.707, mscale_all_dim=1.3, beta_fast=16.0),
    ),
    "deepseek_v3-dense": ModelConfig(
        **(LATENT | {"n_routed_experts": 0, "first_k_dense_replace": 3})
    ),
    "kimi_k2": ModelConfig(
        **LATENT,
        model_type="kimi_k2",
        q_lora_rank=24,
        rope_theta=50000.0,
        rope_scaling=RopeScaling(**YARN, beta_fast=1.0, mscale=1.0, mscale_all_dim=1.0),
    ),
    "qwen2": ModelConfig(**GROUPED, model_type="qwen2", qkv_bias=True, tie_word_embeddings=True),
    "qwen2-yarn": ModelConfig(
        **GROUPED, model_type="qwen2", qkv_bias=True, rope_scaling=RopeScaling(**YARN)
    ),
    "qwen3": ModelConfig(
        **(GROUPED | {"head_dim": 12}), model_type="qwen3", qk_norm=True, rope_theta=1e6
    ),
    "qwen3_moe": ModelConfig(**GROUPED, **SOFTMAX, model_type="qwen3_moe", qk_norm=True),
    "qwen3_moe-sparse": ModelConfig(
        **(GROUPED | {"num_hidden_layers": 5}),
        **SOFTMAX,
        model_type="qwen3_moe",
        qk_norm=True,
        norm_topk_prob=False,
        decoder_sparse_step=2,
        mlp_only_layers=(3,),
    ),
    "llama": ModelConfig(**GROUPED, model_type="llama", rope_scaling=LLAMA3),
    "llama-biases": ModelConfig(
        **(GROUPED | {"num_key_value_heads": 4}), model_type="llama", attention_bias=True
    ),
    "granite": ModelConfig(
        **GROUPED, **MULTIPLIERS, model_type="granite", tie_word_embeddings=True
    ),
    "granitemoe": ModelConfig(
        **(GROUPED | {"intermediate_size": 24}), **SOFTMAX, **MULTIPLIERS, model_type="granitemoe"
    ),
}


class Pages:
    """A cache whose blocks lie in any order, with junk in them, and the pagings of rows of sequences."""

    def __init__(self, config: ModelConfig, rows: int, length: int, *, block_size: int = 8) -> None:
        each, layers = -(-length // block_size), config.num_hidden_layers
        gen = torch.Generator().manual_seed(0)
        self.size = block_size
        self.tables = torch.randperm(rows * each, generator=gen).view(rows, each) + 1
        self.cache = torch.full((layers, rows * each + 1, block_size, config.cache_dim), 7.0)

    def slots(self, row: int, start: int, end: int) -> torch.Tensor:
        at = torch.arange(start, end)
        return self.tables[row, at // self.size] * self.size + at % self.size

    def prompts(self, lengths: list[int]) -> Paging:
        """Whole prompts, row after row."""
        documents = Documents.of(lengths)
        slots = [self.slots(row, 0, n) for row, n in enumerate(lengths)]
        return Paging(documents.positions_N, torch.cat(slots), documents)

    def chunk(self, row: int, start: int, end: int) -> Paging:
        chunk = Chunk(end - start, end, self.tables[row, : -(-end // self.size)])
        return Paging(torch.arange(start, end), self.slots(row, start, end), chunks=(chunk,))

    def rows(self, starts: list[int], tokens: int = 1, *, tiled: bool = False) -> Paging:
        """The next tokens of every row."""
        positions = torch.cat([torch.arange(a, a + tokens) for a in starts])
        slots = [self.slots(row, a, a + tokens) for row, a in enumerate(starts)]
        return Paging(
            positions, torch.cat(slots), tables_BM=self.tables, row_tokens=tokens, tiled=tiled
        )


@pytest.fixture
def make_pages() -> Callable[..., Pages]:
    return Pages


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


@pytest.fixture(params=list(TINY_FAMILIES))
def family_config(request: pytest.FixtureRequest) -> ModelConfig:
    return TINY_FAMILIES[request.param]


@pytest.fixture
def tiny_families() -> dict[str, ModelConfig]:
    return TINY_FAMILIES


@pytest.fixture
def random_model() -> Callable[[ModelConfig], Transformer]:
    """Models in which nothing is at its neutral value: norms are not ones, biases not zeros."""

    def build(config: ModelConfig) -> Transformer:
        model = Transformer(config)
        model.initialize(seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "norm" in name or name.endswith(".bias"):
                    p.add_(torch.randn(p.shape, generator=generator), alpha=0.2)
            for name, bias in model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    # Mostly below what sigmoid adds, so that a mask of 0 would beat what is not masked.
                    bias.copy_(torch.randn(bias.shape, generator=generator) * 0.3 - 1)
        return model

    return build
