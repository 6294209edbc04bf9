"""The optimizer's arithmetic on one parameter, each number read and written once: AdamW, and both ends of Muon."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 2048, 4
"""Numbers of one program, and who computes them. Not measured yet."""


@triton.jit
def _adamw_kernel(
    weight_ptr,
    gradient_ptr,
    master_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    facts_ptr,
    size,
    lr,
    decay,
    beta2,
    rest1,
    rest2,
    HAS_MASTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    written = at < size * tl.load(facts_ptr).to(tl.int64)  # none where the step does not count
    g = tl.load(gradient_ptr + at, mask=inside, other=0.0).to(tl.float32) * tl.load(facts_ptr + 1)
    m = tl.load(exp_avg_ptr + at, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq_ptr + at, mask=inside, other=0.0)
    w = tl.load(master_ptr + at, mask=inside, other=0.0)
    m = m + (g - m) * rest1
    v = v * beta2 + g * g * rest2
    denominator = tl.sqrt(v) * tl.load(facts_ptr + 2) + tl.load(facts_ptr + 3)
    # Outside there are zeros alone, and eps may be so small that it vanishes.
    w = w * (1.0 - lr * decay) - lr * m / tl.where(inside, denominator, 1.0)
    tl.store(exp_avg_ptr + at, m, mask=written)
    tl.store(exp_avg_sq_ptr + at, v, mask=written)
    tl.store(master_ptr + at, w, mask=written)
    if HAS_MASTER:
        tl.store(weight_ptr + at, w.to(weight_ptr.dtype.element_ty), mask=written)


@triton.jit
def _heading_kernel(
    gradient_ptr,
    momentum_ptr,
    heading_ptr,
    facts_ptr,
    size,
    momentum,
    NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    counted = at < size * tl.load(facts_ptr).to(tl.int64)
    g = tl.load(gradient_ptr + at, mask=inside, other=0.0).to(tl.float32) * tl.load(facts_ptr + 1)
    m = tl.load(momentum_ptr + at, mask=inside, other=0.0) * momentum + g
    tl.store(momentum_ptr + at, m, mask=counted)
    if NESTEROV:
        m = g + m * momentum
    # Of a step that does not count, zeros: what goes on from here must be finite.
    heading = tl.where(counted, m, 0.0).to(heading_ptr.dtype.element_ty)
    tl.store(heading_ptr + at, heading, mask=inside)


@triton.jit
def _apply_kernel(
    weight_ptr,
    master_ptr,
    direction_ptr,
    facts_ptr,
    size,
    lr,
    decay,
    scale,
    HAS_MASTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    written = at < size * tl.load(facts_ptr).to(tl.int64)  # none where the step does not count
    w = tl.load(master_ptr + at, mask=inside, other=0.0)
    direction = tl.load(direction_ptr + at, mask=inside, other=0.0).to(tl.float32)
    w = w * (1.0 - lr * decay) - lr * scale * direction
    tl.store(master_ptr + at, w, mask=written)
    if HAS_MASTER:
        tl.store(weight_ptr + at, w.to(weight_ptr.dtype.element_ty), mask=written)


def adamw(
    weight: Tensor,
    gradient: Tensor,
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    facts_4: Tensor,
    *,
    lr: float,
    decay: float,
    betas: tuple[float, float],
) -> None:
    """See `nalar.kernels.updates.adamw_`. All contiguous and of one size; moments and master fp32."""
    _check(weight, gradient, master, exp_avg, exp_avg_sq)
    _adamw_kernel[_grid(weight)](
        *(weight, gradient, master, exp_avg, exp_avg_sq, facts_4, weight.numel()),
        *(
            lr,
            decay,
            betas[1],
            1 - betas[0],
            1 - betas[1],
        ),  # in fp32, 1 - 0.999 would be off in its fifth digit
        HAS_MASTER=weight.dtype != torch.float32,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


def muon_heading(
    gradient: Tensor,
    momentum_buffer: Tensor,
    heading: Tensor,
    facts_4: Tensor,
    *,
    momentum: float,
    nesterov: bool,
) -> None:
    """See `nalar.kernels.updates.muon_heading_`. All contiguous and of one size; the momentum fp32."""
    _check(gradient, momentum_buffer, heading)
    _heading_kernel[_grid(gradient)](
        *(gradient, momentum_buffer, heading, facts_4, gradient.numel(), momentum),
        NESTEROV=nesterov,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


def muon_apply(
    weight: Tensor,
    master: Tensor,
    direction: Tensor,
    facts_4: Tensor,
    *,
    lr: float,
    decay: float,
    scale: float,
) -> None:
    """See `nalar.kernels.updates.muon_apply_`. All contiguous and of one size; the master fp32."""
    _check(weight, master, direction)
    _apply_kernel[_grid(weight)](
        *(weight, master, direction, facts_4, weight.numel(), lr, decay, scale),
        HAS_MASTER=weight.dtype != torch.float32,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), BLOCK),)


def _check(first: Tensor, *others: Tensor) -> None:
    for x in (first, *others):
        assert x.is_contiguous() and x.numel() == first.numel(), "contiguous and of one size"
