"""SwiGLU experts for very few rows, without sorting: see `experts`. Products of matrices and vectors.

One program reads a few lines of one expert's weights, and all of them at once, for the input of one choice; another
the same lines of down for all choices of a token, added in their order.
"""

# T tokens · D hidden · K routed choices of a token · S shared · C = K + S · F expert width · W = S*F shared width

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

Weights = tuple[Tensor, Tensor, Tensor]
"""Of a dense layer of width W, and so of the shared expert: gate [W, D], up [W, D], down [D, W]."""


class Lines(NamedTuple):
    lines: int
    """Of weights for one program: outputs."""
    depth: int
    """Most numbers of a line taken at a time."""
    warps: int


UP_LINES, DOWN_LINES = Lines(4, 1024, 4), Lines(4, 512, 4)
"""Not measured yet."""


def through_lines(
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    gate_up: Tensor,
    down: Tensor,
    shared: Weights,
    sizes: tuple[int, int, int],
) -> Tensor:
    (T, D), (K, S, F) = x_TD.shape, sizes
    act_TCF = torch.empty((T, K + S, F), dtype=x_TD.dtype, device=x_TD.device)
    out_TD = torch.empty((T, D), dtype=x_TD.dtype, device=x_TD.device)
    shared_gate, shared_up, shared_down = shared
    _up_lines[(T * (K + S), triton.cdiv(F, UP_LINES.lines))](
        *(x_TD, ids_TK, gate_up, shared_gate, shared_up, act_TCF, x_TD.stride(0)),
        K=K,
        C=K + S,
        D=D,
        F=F,
        BLOCK_F=UP_LINES.lines,
        BLOCK_D=min(UP_LINES.depth, triton.next_power_of_2(D)),
        num_warps=UP_LINES.warps,
    )
    _down_lines[(T, triton.cdiv(D, DOWN_LINES.lines))](
        *(act_TCF, ids_TK, weights_TK, down, shared_down, out_TD),
        K=K,
        S=S,
        D=D,
        F=F,
        BLOCK_D=DOWN_LINES.lines,
        BLOCK_F=min(DOWN_LINES.depth, triton.next_power_of_2(F)),
        num_warps=DOWN_LINES.warps,
    )
    return out_TD


@triton.jit
def silu(gate):
    return gate / (1.0 + tl.exp(-gate))


@triton.jit
def _up_line(
    x_ptr,
    gate_ptr,
    up_ptr,
    act_ptr,
    f,
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One row through a few lines of one expert."""
    gate = tl.zeros([BLOCK_F, BLOCK_D], tl.float32)
    up = tl.zeros([BLOCK_F, BLOCK_D], tl.float32)
    for start in tl.static_range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        at = f[:, None] * D + d[None, :]
        is_in = (f < F)[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(gate_ptr + at, mask=is_in, other=0.0).to(tl.float32) * x
        up += tl.load(up_ptr + at, mask=is_in, other=0.0).to(tl.float32) * x
    act = silu(tl.sum(gate, 1)) * tl.sum(up, 1)
    tl.store(act_ptr + f, act.to(act_ptr.dtype.element_ty), mask=f < F)


@triton.jit
def _up_lines(
    x_ptr,
    ids_ptr,
    gate_up_ptr,
    shared_gate_ptr,
    shared_up_ptr,
    act_ptr,
    x_row,
    K: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    token = row // C
    choice = row % C
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    x_ptr += token * x_row
    act_ptr += row * F
    # Branches that compute, not a choice of pointer: so the compiler sees how the weights lie.
    if choice < K:
        expert = tl.load(ids_ptr + token * K + choice).to(tl.int64)
        gate_ptr = gate_up_ptr + expert * (2 * F * D)
        _up_line(x_ptr, gate_ptr, gate_ptr + F * D, act_ptr, f, D, F, BLOCK_F, BLOCK_D)
    else:
        at = (choice - K) * (F * D)
        _up_line(
            x_ptr, shared_gate_ptr + at, shared_up_ptr + at, act_ptr, f, D, F, BLOCK_F, BLOCK_D
        )


@triton.jit
def _down_lines(
    act_ptr,
    ids_ptr,
    weights_ptr,
    down_ptr,
    shared_down_ptr,
    out_ptr,
    K: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """A few outputs of one token: over all its choices, in their order."""
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_out = d < D
    act_ptr += token * ((K + S) * F)
    total = tl.zeros([BLOCK_D, BLOCK_F], tl.float32)
    for start in tl.static_range(0, F, BLOCK_F):
        f = start + tl.arange(0, BLOCK_F)
        is_in = is_out[:, None] & (f < F)[None, :]
        for k in tl.static_range(K):
            expert = tl.load(ids_ptr + token * K + k).to(tl.int64)
            weight = tl.load(weights_ptr + token * K + k).to(tl.float32)
            act = tl.load(act_ptr + k * F + f, mask=f < F, other=0.0).to(tl.float32) * weight
            at = expert * (D * F) + d[:, None] * F + f[None, :]
            down = tl.load(down_ptr + at, mask=is_in, other=0.0).to(tl.float32)
            total += down * act[None, :]
        for s in tl.static_range(S):
            act = tl.load(act_ptr + (K + s) * F + f, mask=f < F, other=0.0).to(tl.float32)
            at = d[:, None] * (S * F) + (s * F + f)[None, :]
            down = tl.load(shared_down_ptr + at, mask=is_in, other=0.0).to(tl.float32)
            total += down * act[None, :]
    out = tl.sum(total, 1).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + token * D + d, out, mask=is_out)
