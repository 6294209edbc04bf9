"""A small model with exact arithmetic: only what it attends to can change what it says.

Two layers store latents of small integers. A token's second latent depends on all first latents up
to it, its state on all second latents, and its logits are a row of a table chosen by the state:
read one stale, missing or foreign position and another row is chosen.

B rows · T positions · C latent width · L layers · V vocabulary
"""

import pytest
import torch
from torch import Tensor

from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.model.config import ModelConfig

VOCAB_SIZE = 13
_PRIMES_C = torch.tensor([3.0, 5.0, 7.0, 11.0])


class FakeModel:
    """Counts what it is asked to do."""

    def __init__(self, vocab_size: int = VOCAB_SIZE) -> None:
        self.config = ModelConfig(
            vocab_size=vocab_size,
            hidden_size=1,
            intermediate_size=1,
            moe_intermediate_size=1,
            num_hidden_layers=2,
            num_attention_heads=1,
            n_routed_experts=0,
            num_experts_per_tok=0,
            kv_lora_rank=2,
            qk_nope_head_dim=2,
            qk_rope_head_dim=2,
            v_head_dim=2,
        )
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(101, vocab_size, generator=generator) * 1.5
        self.prefilled_rows = 0
        self.prefill_calls = 0
        self.decode_batches: list[int] = []

    def state_dict(self) -> dict[str, Tensor]:
        return {"table": self.table}

    def prefill(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        self.prefill_calls += 1
        self.prefilled_rows += len(ids_BT)
        positions_T = torch.arange(ids_BT.shape[1])
        first_BTC = self._first(ids_BT, positions_T)
        second_BTC = self._second(first_BTC.cumsum(1))
        states_BT1 = (second_BTC.cumsum(1) @ _PRIMES_C)[..., None]
        return states_BT1, torch.stack([first_BTC, second_BTC])

    def decode(self, ids_B: Tensor, positions_B: Tensor, cache_LBTC: Tensor) -> Tensor:
        rows_B = torch.arange(len(ids_B))
        self.decode_batches.append(len(ids_B))
        seen_BT1 = (torch.arange(cache_LBTC.shape[2]) <= positions_B[:, None])[..., None]
        cache_LBTC[0, rows_B, positions_B] = self._first(ids_B, positions_B)
        sums_BC = (cache_LBTC[0] * seen_BT1).sum(1)
        cache_LBTC[1, rows_B, positions_B] = self._second(sums_BC)
        return ((cache_LBTC[1] * seen_BT1).sum(1) @ _PRIMES_C)[..., None]

    def logits(self, states: Tensor) -> Tensor:
        return self.table[(states[..., 0] % len(self.table)).long()]

    def full_logits(self, ids: list[int]) -> Tensor:
        """Logits after each of these tokens, by one pass without a cache."""
        states_1TD, _ = self.prefill(torch.tensor([ids]))
        return self.logits(states_1TD[0])

    def _first(self, ids: Tensor, positions: Tensor) -> Tensor:
        return ((ids * 7 + positions * 3 + 1)[..., None] * torch.arange(1, 5) % 17).float()

    def _second(self, sums: Tensor) -> Tensor:
        return (sums * 3 + sums.roll(1, -1)) % 19


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def make_engine(model):
    def make(**limits) -> Engine:
        return Engine(model, EngineConfig(**{"max_model_len": 300, **limits}))

    return make
