"""A small model and batches of random ids."""

from collections.abc import Callable

import pytest
import torch

from nalar.data.packing import Packed, pack
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip
from nalar.train.pretrain import on_device
from nalar.train.step import Batch

VOCAB_SIZE = 40


class RandomBatches:
    """Batches that are a pure function of the step, with something to learn: each id tends to repeat."""

    tokens_per_step = 96
    lengths = (24, 40, 2, 30)

    def batch(self, step: int) -> Packed:
        generator = torch.Generator().manual_seed(step)
        documents = []
        for length in self.lengths:
            ids = torch.randint(0, VOCAB_SIZE, (length + 1,), generator=generator)
            repeat = torch.rand(length + 1, generator=generator) < 0.7
            for t in range(1, length + 1):
                ids[t] = torch.where(repeat[t], ids[t - 1], ids[t])
            documents.append(ids.tolist())
        return pack(documents)


@pytest.fixture
def batches() -> RandomBatches:
    return RandomBatches()


@pytest.fixture
def batch(batches: RandomBatches) -> Batch:
    return on_device(batches.batch(0), torch.device("cpu"))


@pytest.fixture
def make_model() -> Callable[[], Transformer]:
    def make(seed: int = 0) -> Transformer:
        config = ModelConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            intermediate_size=48,
            moe_intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            n_routed_experts=4,
            num_experts_per_tok=2,
            kv_lora_rank=12,
            qk_nope_head_dim=12,
            qk_rope_head_dim=4,
            v_head_dim=16,
            max_position_embeddings=64,
            initializer_range=0.08,
        )
        model = Transformer(config)
        model.initialize(seed)
        return model

    return make


@pytest.fixture
def model(make_model: Callable[[], Transformer]) -> Transformer:
    return make_model()


@pytest.fixture
def make_optimizer() -> Callable[..., MuonClip]:
    def make(model: Transformer, **changes: object) -> MuonClip:
        settings = {"lr": 0.01, "adamw_lr": 5e-3, "weight_decay": 0.01} | changes
        if settings.get("name") == "adamw":  # nothing is under Muon, so lr has nothing to say
            settings["lr"] = settings["adamw_lr"]
        return MuonClip(model.named_parameters(), OptimConfig(**settings))

    return make
