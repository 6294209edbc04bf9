"""What `bench/kernels.py` runs: a kernel, the shapes that count, what it moves and computes."""

# B rows · V vocabulary · D hidden · T tokens · M blocks of a row

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memory import MOE
from nalar.engine.sampler import sample
from nalar.kernels.head import head_logits
from nalar.kernels.rows import newest
from nalar.plan.published import PUBLISHED

QWEN = PUBLISHED["qwen3-0.6b"].config
BATCHES = (1, 64, 256)
TOLERANCES = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
"""Of the largest output: bfloat16 rounds at 2^-9, and the plain forms round between their operations."""


class Place:
    """Where tensors are made, from a seed that goes on."""

    def __init__(self, device: torch.device, tiny: bool) -> None:
        self.device = device
        # Triton's interpreter multiplies bfloat16 wrongly, and says nothing.
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.cache_bytes = 0
        if device.type == "cuda" and not tiny:
            self.cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._generator = torch.Generator(device=device).manual_seed(0)

    def normal(self, *shape: int, std: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        x = torch.randn(shape, device=self.device, generator=self._generator)
        return (x * std).to(dtype or self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, device=self.device, generator=self._generator)

    def order(self, count: int) -> Tensor:
        return torch.randperm(count, device=self.device, generator=self._generator)


def difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest error as a share of the largest number of its tensor; integers must be equal."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if not a.is_floating_point():
            worst = worst if torch.equal(a, b) else float("inf")
        elif a.numel():
            error = float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(1e-30))
            worst = max(worst, error if error == error else float("inf"))
    return worst


@dataclass(frozen=True)
class Case:
    name: str
    kernels: tuple[str, ...]
    """As the switch names them."""
    call: Callable[..., Any]
    """Chooses kernel or plain form by the switch; a tensor or a tuple of them."""
    make: Callable[[Place], tuple[Any, ...]]
    """Arguments of a call."""
    cost: Callable[..., tuple[float, float]]
    """Of such arguments: bytes that have to be moved, and floating-point operations."""
    grads: tuple[int, ...] = ()
    """Arguments whose gradients are part of the call."""
    compare: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], float] = difference
    tolerances: dict[torch.dtype, float] = field(default_factory=lambda: TOLERANCES)

    def tolerance(self, dtype: torch.dtype) -> float:
        return self.tolerances[dtype]


def cases(tiny: bool) -> list[Case]:
    batches = (3,) if tiny else BATCHES
    width, vocab = (64, 1500) if tiny else (MOE["hidden_size"], MOE["vocab_size"])
    found = [sampling(f"sample_b{B}", B, vocab) for B in batches]
    found += [
        head(f"head_b{B}", B, width, vocab) for B in batches if not tiny
    ]  # no such product on a CPU
    found += [rows(f"rows_b{B}", B) for B in batches]
    if not tiny:
        found += [
            sampling("sample_qwen_b256", 256, QWEN.vocab_size),
            head("head_qwen_b256", 256, QWEN.hidden_size, QWEN.vocab_size),
        ]
    return found


def sampling(name: str, B: int, V: int) -> Case:
    def make(place: Place) -> tuple[Any, ...]:
        logits_BV = place.normal(B, V, std=3.0, dtype=torch.float32)
        return logits_BV, place.integers(-(2**62), 2**62, B), place.integers(0, 4096, B)

    def call(logits_BV: Tensor, keys_B: Tensor, counters_B: Tensor) -> tuple[Tensor, ...]:
        drawn = sample(logits_BV, keys_B, counters_B)
        return drawn.ids_B, drawn.logprobs_B, drawn.processed_B

    def compare(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
        """One draw may fall on the other side of a boundary between tokens."""
        same = found[0] == expected[0]
        if int((~same).sum()) > 1:
            return float("inf")
        return difference(*(tuple(x[same] for x in side[1:]) for side in (found, expected)))

    def cost(logits_BV: Tensor, *_: Tensor) -> tuple[float, float]:
        return logits_BV.nbytes, 0.0

    precise = dict.fromkeys(TOLERANCES, 1e-5)
    return Case(name, ("sample",), call, make, cost, compare=compare, tolerances=precise)


def head(name: str, B: int, D: int, V: int) -> Case:
    def make(place: Place) -> tuple[Any, ...]:
        return place.normal(B, D), place.normal(V, D, std=0.02)

    def cost(states_BD: Tensor, head_VD: Tensor) -> tuple[float, float]:
        return states_BD.nbytes + head_VD.nbytes + B * V * 4, 2.0 * B * D * V

    precise = dict.fromkeys(TOLERANCES, 1e-5)
    return Case(name, ("head",), head_logits, make, cost, tolerances=precise)


def rows(name: str, B: int) -> Case:
    """The gather at the start of a decode step."""
    block_size, M = 16, 16

    def make(place: Place) -> tuple[Any, ...]:
        positions_R = place.integers(0, block_size * M, B + 1)
        tables_RM = place.integers(1, 4096, B + 1, M)
        limits_B = torch.full((B,), block_size * M, device=place.device)
        ids_R = place.integers(0, 32_000, B + 1)
        return place.order(B + 1)[:B], limits_B, ids_R, positions_R, tables_RM

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        return tuple(newest(*args, width=M, block_size=block_size))

    def cost(*args: Tensor) -> tuple[float, float]:
        return 8.0 * B * (2 * M + 8), 0.0

    return Case(name, ("rows",), call, make, cost)
