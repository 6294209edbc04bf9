"""How fast this device multiplies matrices: the ceiling that the use of it is measured against."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

BUDGET_S = 0.2
LEAST_ROUNDS = 3
CPU_SIDE, GPU_SIDE = 1024, 4096
GPU_PRODUCTS = 20
"""Of one round: a single product is over before the clock has been read."""


@dataclass(frozen=True)
class Ceiling:
    """The best that square products of `dtype` reached, on the process's threads where it is a CPU."""

    flops_per_s: float
    side: int
    dtype: torch.dtype


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """Takes some tenths of a second, and no random number of the process's.

    The best round counts: what else the machine does can only make a round slower.
    """
    is_cpu = device.type == "cpu"
    side, products = (CPU_SIDE, 1) if is_cpu else (GPU_SIDE, GPU_PRODUCTS)
    # Random, not constant: a GPU runs faster on numbers whose bits do not change.
    generator = torch.Generator(device=device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    begun, rounds = time.perf_counter(), 0
    best_s = float("inf")
    while rounds < LEAST_ROUNDS or time.perf_counter() - begun < BUDGET_S:
        best_s = min(best_s, _round_s(a, b, out, products))
        rounds += 1
    return Ceiling(2.0 * side**3 * products / best_s, side, dtype)


@torch.no_grad()
def _round_s(a: Tensor, b: Tensor, out: Tensor, products: int) -> float:
    _wait_for(a.device)
    begun = time.perf_counter()
    for _ in range(products):
        torch.mm(a, b, out=out)
    _wait_for(a.device)
    return time.perf_counter() - begun


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
