"""A small model with exact arithmetic: only what it attends to can change what it says.

Two layers store latents of small integers. A token's second latent depends on all first latents up
to it, its state on all second latents, and its logits are a row of a table chosen by the state:
read one stale, missing or foreign position and another row is chosen.

N tokens of a step · T tokens · C latent width · L layers · P blocks of S slots · V vocabulary
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nalar.engine import decode as decode_module
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.kernels.paging import Paging
from nalar.model.config import ModelConfig

VOCAB_SIZE = 13
_PRIMES_C = torch.tensor([3.0, 5.0, 7.0, 11.0])


class FakeModel:
    """Counts what it is asked to do."""

    def __init__(self, vocab_size: int = VOCAB_SIZE, depths: int = 0) -> None:
        self.config = ModelConfig(
            vocab_size=vocab_size,
            hidden_size=1,
            intermediate_size=1,
            moe_intermediate_size=1,
            num_hidden_layers=2,
            num_nextn_predict_layers=depths,
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
        self.prompt_tokens = 0
        self.batches: list[int] = []
        self.decode_batches: list[int] = []

    def state_dict(self) -> dict[str, Tensor]:
        return {"table": self.table}

    def extend(self, ids_N: Tensor, cache_LPSC: Tensor, paging: Paging) -> Tensor:
        self.batches.append(len(ids_N))
        self.prompt_tokens += len(ids_N)
        if paging.tables_BM is not None:
            self.decode_batches.append(len(paging.tables_BM))
            self.prompt_tokens -= len(paging.tables_BM) * paging.row_tokens
        positions_N, flat = paging.positions_N, cache_LPSC.flatten(1, 2)
        slots = self._slots(paging, cache_LPSC.shape[2])
        flat[0, paging.slots_N] = self._first(ids_N, positions_N)
        sums_NC = torch.stack([flat[0, seen].sum(0) for seen in slots])
        flat[1, paging.slots_N] = self._second(sums_NC)
        return torch.stack([flat[1, seen].sum(0) for seen in slots]) @ _PRIMES_C[:, None]

    def _slots(self, paging: Paging, size: int) -> list[Tensor]:
        """For each token the slots of all tokens of its sequence up to itself."""
        found, done = [], paging.num_fresh
        for n in paging.fresh.lengths if paging.fresh is not None else ():
            own = paging.slots_N[len(found) : len(found) + n]
            found += [own[: i + 1] for i in range(n)]
        for chunk in paging.chunks:
            own = (chunk.blocks_M[:, None] * size + torch.arange(size)).flatten()
            found += [
                own[paging.first : chunk.end - chunk.tokens + i + 1] for i in range(chunk.tokens)
            ]
            done += chunk.tokens
        for i, blocks_M in enumerate([] if paging.tables_BM is None else paging.tables_BM):
            own = (blocks_M[:, None] * size + torch.arange(size)).flatten()
            for at in paging.positions_N[done + i * paging.row_tokens :][: paging.row_tokens]:
                found.append(own[paging.first : int(at) + 1])
        # Block 0 is nobody's: padding is written there, and what is computed although it was found.
        assert all(
            int(at) < size or int(seen[-1]) == int(at)
            for seen, at in zip(found, paging.slots_N, strict=True)
        )
        return found

    def draft(self, states_ND: Tensor, ids_N: Tensor, cache_PSC: Tensor, paging: Paging) -> Tensor:
        flat = cache_PSC.flatten(0, 1)
        flat[paging.slots_N] = self._entry(states_ND, ids_N, paging.positions_N)
        slots = self._slots(paging, cache_PSC.shape[1])
        return torch.stack([flat[seen].sum(0) for seen in slots]) @ _PRIMES_C[:, None]

    def full_drafts(self, ids: list[int], count: int, draws) -> list[int]:
        """What `count` drafts behind these tokens are, without a cache. draws(logits, i): the token of the i-th."""
        ids = list(ids)
        first_TC = self._first(torch.tensor(ids), torch.arange(len(ids)))
        second_TC = self._second(first_TC.cumsum(0))
        states_T1 = (second_TC.cumsum(0) @ _PRIMES_C)[:, None]
        at = torch.arange(1, len(ids))
        entries = self._entry(states_T1[:-1], torch.tensor(ids[1:]), at).sum(0)
        drafts: list[int] = []
        for i in range(count):
            state_11 = (entries @ _PRIMES_C)[None, None]
            drafts.append(draws(self.logits(state_11), i))
            at, new = torch.tensor([len(ids) + i]), torch.tensor(drafts[-1:])
            entries = entries + self._entry(state_11, new, at)[0]
        return drafts

    def _entry(self, states: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
        return (self._first(ids, positions) + states) % 23

    def logits(self, states: Tensor) -> Tensor:
        return self.table[(states[..., 0] % len(self.table)).long()]

    def full_logits(self, ids: list[int]) -> Tensor:
        """Logits after each of these tokens, by one pass without a cache."""
        first_TC = self._first(torch.tensor(ids), torch.arange(len(ids)))
        second_TC = self._second(first_TC.cumsum(0))
        return self.logits((second_TC.cumsum(0) @ _PRIMES_C)[:, None])

    def _first(self, ids: Tensor, positions: Tensor) -> Tensor:
        return ((ids * 7 + positions * 3 + 1)[..., None] * torch.arange(1, 5) % 17).float()

    def _second(self, sums: Tensor) -> Tensor:
        return (sums * 3 + sums.roll(1, -1)) % 19


class Flaky(FakeModel):
    """Raises at some calls, and can be filled with NaN."""

    def __init__(self):
        super().__init__()
        self.calls, self.fails_at = 0, set()
        self.poison = 1.0

    def extend(self, ids_N, cache_LPSC, paging):
        self.calls += 1
        states_ND = super().extend(ids_N, cache_LPSC, paging)
        if self.calls in self.fails_at:
            raise RuntimeError("the model is tired")
        return states_ND

    def _first(self, ids, positions):
        return super()._first(ids, positions) * self.poison

    def logits(self, states):
        return super().logits(states.nan_to_num()) * self.poison


@pytest.fixture
def make_model() -> type[FakeModel]:
    return FakeModel


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def flaky() -> Flaky:
    return Flaky()


@pytest.fixture
def make_engine(model):
    def make(own: FakeModel = model, **limits) -> Engine:
        return Engine(own, EngineConfig(**{"max_model_len": 300, **limits}))

    return make


def _probabilities(
    logits,
    *,
    bias=None,
    banned=(),
    allowed=None,
    said=(),
    prompt=(),
    repetition=1.0,
    presence=0.0,
    frequency=0.0,
    temperature=1.0,
    min_p=0.0,
    top_k=None,
    top_p=1.0,
):
    """Probabilities by plain Python, step by step in vLLM's order."""
    logits = [x + (bias or {}).get(i, 0.0) for i, x in enumerate(logits)]
    for i in range(len(logits)):
        if i in banned or (allowed is not None and i not in allowed):
            logits[i] = -math.inf
    for i in {*said, *prompt}:
        logits[i] = logits[i] / repetition if logits[i] > 0 else logits[i] * repetition
    for i in set(said):
        logits[i] -= frequency * list(said).count(i)
        logits[i] -= presence
    order = sorted(range(len(logits)), key=lambda i: -logits[i])  # stable: lower ids first
    if temperature == 0:
        return [float(i == order[0]) for i in range(len(logits))]
    logits = [x / temperature for x in logits]
    weights = [math.exp(x - max(logits)) for x in logits]
    kept = [i for i in order if weights[i] >= min_p * weights[order[0]]]
    kept = kept[:top_k]
    if top_p < 1:
        total, before, nucleus = sum(weights[i] for i in kept), 0.0, []
        for i in kept:
            if before < top_p * total:
                nucleus.append(i)
            before += weights[i]
        kept = nucleus
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


@pytest.fixture
def reference() -> Callable[..., list[float]]:
    return _probabilities


class Tape:
    """Records steps as a GPU does: rehearses them, then plays them back without being told anything new."""

    def __init__(self):
        self.steps = {}
        self.played = []

    def __contains__(self, key):
        return key in self.steps

    def record(self, key, step):
        for _ in range(decode_module.REHEARSALS):
            step()
        self.steps[key] = step

    def replay(self, key):
        self.played.append(key)
        self.steps[key]()


@pytest.fixture
def tapes(monkeypatch):
    """All that are made, by engines that record here too."""
    made = []

    def make():
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr(decode_module, "recorder_for", lambda device, config: make)
    return made
