"""SwiGLU experts for few rows: two products over the experts' weights, which are read about once. No gradient.

A token's choices are its K routed experts and the S parts of the shared one, each as wide as a routed expert and of
weight 1. With few choices in all, one program reads a few lines of one expert's weights for one choice, as a product
of matrix and vector. With more, choices are sorted by expert on the device, and a list of blocks says which expert a
program works for (the idea of vLLM's moe_align_block_size). Grids depend on T alone, never on where tokens are sent,
so a CUDA graph can hold them. No atomics: the same input gives the same bits.

Sums are in float32. Rounded to the dtype of x are the activation, the result, and in the sorted form each choice's
part of it: with u that dtype's rounding (2^-9 for bfloat16), the error is at most about 2u of the sum over
choices of |weight| (|activation| times |down|), and u of the result.
"""

# T tokens · D hidden · E experts · K routed choices of a token · S shared · C = K + S · F expert width
# R = T*K routed rows · W = S*F width of the shared expert · M rows of a block · B blocks of routed rows

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nalar.kernels.gpu.expert_lines import Weights, silu, through_lines

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_ROUTED = 4096
"""R at most: a program looks at the ids of all. More go to torch's grouped products."""
UNSORTED = 40
"""T * C up to which choices are not sorted. Not measured yet."""
UNSORTED_DENSE = 8
"""T up to which a dense SwiGLU goes without torch's products. Not measured yet."""


class Tiles(NamedTuple):
    width: int
    """Outputs of one program."""
    depth: int
    """Inputs taken at a time."""
    warps: int
    stages: int


UP_TILES = {
    16: Tiles(32, 128, 4, 4),
    32: Tiles(32, 128, 4, 4),
    64: Tiles(64, 64, 4, 4),
    128: Tiles(64, 64, 8, 3),
}
DOWN_TILES = {
    16: Tiles(64, 128, 4, 3),
    32: Tiles(64, 128, 4, 3),
    64: Tiles(64, 64, 4, 4),
    128: Tiles(128, 64, 8, 3),
}
"""By M. Not measured yet."""
ROOM = 2
"""M is the power of two from this many times the mean of rows to an expert: few experts then need two blocks."""
SUMMED = 512
"""Outputs of one program that adds up choices."""


def why_not(
    x_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, shared: Weights | None
) -> str | None:
    """What `few_row_experts` does not take, if anything, the number of rows aside."""
    weights = (gate_up_E2FD, down_EDF, *(shared or ()))
    if shared is not None and len(shared[0]) % down_EDF.shape[2]:
        return f"a shared expert of {len(shared[0])}, no multiple of {down_EDF.shape[2]}"
    return _why_not(x_TD, weights)


def why_not_dense(x_TD: Tensor, shared: Weights) -> str | None:
    """What `few_row_dense` does not take, if anything, the number of rows aside."""
    return _why_not(x_TD, shared)


def _why_not(x_TD: Tensor, weights: tuple[Tensor, ...]) -> str | None:
    if x_TD.dtype not in DTYPES:
        return f"rows of {x_TD.dtype}"
    if any(weight.dtype != x_TD.dtype for weight in weights):
        return f"weights of another dtype than rows of {x_TD.dtype}"
    if not all(weight.is_contiguous() for weight in weights):
        return "weights that do not lie as they are counted"
    return None


def few_row_experts(
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    shared: Weights | None = None,
) -> Tensor:
    """Weighted sum of each token's experts, plus the shared expert: [T, D] in the dtype of x.

    ids_TK: int64 in [0, E), at most MOST_ROUTED in all; weights_TK: float32 counts most, any float will do.
    """
    if len(x_TD) == 0:
        return torch.empty_like(x_TD)
    K, F = ids_TK.shape[1], down_EDF.shape[2]
    S = 0 if shared is None else len(shared[0]) // F
    x_TD = x_TD if x_TD.stride(1) == 1 else x_TD.contiguous()
    compute = through_lines if len(x_TD) * (K + S) <= UNSORTED else _sorted
    given = shared or (gate_up_E2FD, gate_up_E2FD, down_EDF)  # unused where S is 0
    ids, weights = ids_TK.contiguous(), weights_TK.contiguous()
    return compute(x_TD, ids, weights, gate_up_E2FD, down_EDF, given, (K, S, F))


def few_row_dense(x_TD: Tensor, shared: Weights) -> Tensor:
    """SwiGLU of rows, [T, D]: the unsorted form with a shared expert alone."""
    if len(x_TD) == 0:
        return torch.empty_like(x_TD)
    x_TD = x_TD if x_TD.stride(1) == 1 else x_TD.contiguous()
    gate, _, down = shared
    return through_lines(x_TD, x_TD, x_TD, gate, down, shared, (0, 1, len(gate)))


def block_rows(T: int, K: int, E: int) -> int:
    """M, from what is known without looking at the ids."""
    wanted: int = triton.next_power_of_2(triton.cdiv(ROOM * T * K, E))
    return min(max(wanted, min(UP_TILES)), max(UP_TILES))


def blocks_of(ids_TK: Tensor, E: int, M: int) -> tuple[Tensor, Tensor]:
    """Choices sorted by expert, int32 [R], stable; and int32 [B, 3]: expert, first row, end of rows of each block.

    No block has rows of two experts. B is the most that there can be; blocks that are over are empty (0, 0, 0).
    """
    R = ids_TK.numel()
    order_R = torch.empty(R, dtype=torch.int32, device=ids_TK.device)
    # Each expert that has rows leaves at most one block unfilled.
    B = min(R, E + R // M)
    blocks_B3 = torch.empty((B, 3), dtype=torch.int32, device=ids_TK.device)
    _sort_rows[(E + 1,)](
        *(ids_TK, order_R, blocks_B3, R, B),
        E=E,
        M=M,
        BLOCK_R=max(triton.next_power_of_2(R), 128),
        BLOCK_B=max(triton.next_power_of_2(B), 128),
        BINS=triton.next_power_of_2(E + 1),
        num_warps=4,
    )
    return order_R, blocks_B3


def _sorted(
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    gate_up: Tensor,
    down: Tensor,
    shared: Weights,
    sizes: tuple[int, int, int],
) -> Tensor:
    (T, D), (K, S, F), E = x_TD.shape, sizes, len(down)
    M = block_rows(T, K, E)
    order_R, blocks_B3 = blocks_of(ids_TK, E, M)
    B = len(blocks_B3)
    # Routed rows in their sorted order, then the shared ones, part by part.
    act_RF = torch.empty((T * (K + S), F), dtype=x_TD.dtype, device=x_TD.device)
    y_TCD = torch.empty((T, K + S, D), dtype=x_TD.dtype, device=x_TD.device)
    out_TD = torch.empty((T, D), dtype=x_TD.dtype, device=x_TD.device)
    up, into = UP_TILES[M], DOWN_TILES[M]
    shared_gate, shared_up, shared_down = shared
    rows = B + S * triton.cdiv(T, M)
    wide = x_TD.dtype == torch.float32  # twice the shared memory; for tests
    names = {"K": K, "S": S, "D": D, "F": F, "M": M}
    _up_tiles[(triton.cdiv(F, up.width), rows)](
        *(x_TD, order_R, blocks_B3, gate_up, shared_gate, shared_up, act_RF),
        *(x_TD.stride(0), T, B),
        **names,
        BLOCK_F=up.width,
        BLOCK_D=up.depth,
        num_warps=up.warps,
        num_stages=1 if wide else up.stages,
    )
    _down_tiles[(triton.cdiv(D, into.width), rows)](
        *(act_RF, order_R, blocks_B3, weights_TK, down, shared_down, y_TCD, T, B),
        **names,
        BLOCK_D=into.width,
        BLOCK_F=into.depth,
        num_warps=into.warps,
        num_stages=1 if wide else into.stages,
    )
    _add_choices[(T, triton.cdiv(D, SUMMED))](
        y_TCD, out_TD, C=K + S, D=D, BLOCK_D=SUMMED, num_warps=4
    )
    return out_TD


@triton.jit(do_not_specialize=["R", "B"])
def _sort_rows(
    ids_ptr,
    order_ptr,
    blocks_ptr,
    R,
    B,
    E: tl.constexpr,
    M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BINS: tl.constexpr,
):
    """Program e places the rows of expert e and lists its blocks; program E the blocks that are over.

    Each counts all ids for itself, so that none waits for another.
    """
    e = tl.program_id(0)
    r = tl.arange(0, BLOCK_R)
    ids = tl.load(ids_ptr + r, mask=r < R, other=E).to(tl.int32)
    count_E = tl.histogram(ids, BINS)
    bin_E = tl.arange(0, BINS)
    before = tl.where(bin_E < e, count_E, 0)
    first = tl.sum(before, 0)
    first_block = tl.sum((before + M - 1) // M, 0)
    b = tl.arange(0, BLOCK_B)
    entry_ptr = blocks_ptr + (first_block + b) * 3
    if e < E:
        is_mine = ids == e
        place = first + tl.cumsum(is_mine.to(tl.int32), 0) - 1
        tl.store(order_ptr + place, r, mask=is_mine)
        end = first + tl.sum(is_mine.to(tl.int32), 0)
        start = first + b * M
        is_used = start < end
        tl.store(entry_ptr, tl.zeros([BLOCK_B], tl.int32) + e, mask=is_used)
        tl.store(entry_ptr + 1, start, mask=is_used)
        tl.store(entry_ptr + 2, tl.minimum(start + M, end), mask=is_used)
    else:
        is_over = first_block + b < B
        zero = tl.zeros([BLOCK_B], tl.int32)
        tl.store(entry_ptr, zero, mask=is_over)
        tl.store(entry_ptr + 1, zero, mask=is_over)
        tl.store(entry_ptr + 2, zero, mask=is_over)


@triton.jit
def _up_tile(
    x_ptr,
    x_rows,
    is_row,
    gate_ptr,
    up_ptr,
    act_ptr,
    act_rows,
    D: tl.constexpr,
    F: tl.constexpr,
    M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """M rows, at x_rows, through a tile of gate and up; their activations to act_rows."""
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    is_f = f < F
    gate = tl.zeros([M, BLOCK_F], tl.float32)
    up = tl.zeros([M, BLOCK_F], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        is_d = d < D
        x = tl.load(
            x_ptr + x_rows[:, None] + d[None, :], mask=is_row[:, None] & is_d[None, :], other=0.0
        )
        at = f[None, :] * D + d[:, None]
        is_in = is_f[None, :] & is_d[:, None]
        gate_DF = tl.load(gate_ptr + at, mask=is_in, other=0.0)
        up_DF = tl.load(up_ptr + at, mask=is_in, other=0.0)
        gate = tl.dot(x, gate_DF, gate, input_precision="ieee")
        up = tl.dot(x, up_DF, up, input_precision="ieee")
    act = (silu(gate) * up).to(act_ptr.dtype.element_ty)
    tl.store(
        act_ptr + act_rows[:, None] * F + f[None, :], act, mask=is_row[:, None] & is_f[None, :]
    )


@triton.jit(do_not_specialize=["T", "B"])
def _up_tiles(
    x_ptr,
    order_ptr,
    blocks_ptr,
    gate_up_ptr,
    shared_gate_ptr,
    shared_up_ptr,
    act_ptr,
    x_row,
    T,
    B,
    K: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block = tl.program_id(1)
    m = tl.arange(0, M)
    if block < B:
        expert = tl.load(blocks_ptr + block * 3).to(tl.int64)
        first = tl.load(blocks_ptr + block * 3 + 1)
        end = tl.load(blocks_ptr + block * 3 + 2)
        if first < end:
            is_row = first + m < end
            token = tl.load(order_ptr + first + m, mask=is_row, other=0).to(tl.int64) // K
            gate_ptr = gate_up_ptr + expert * (2 * F * D)
            _up_tile(
                x_ptr,
                token * x_row,
                is_row,
                gate_ptr,
                gate_ptr + F * D,
                act_ptr,
                (first + m).to(tl.int64),
                D,
                F,
                M,
                BLOCK_F,
                BLOCK_D,
            )
    else:
        blocks = tl.cdiv(T, M)
        part = ((block - B) // blocks).to(tl.int64)
        token = ((block - B) % blocks * M + m).to(tl.int64)
        at = part * (F * D)
        _up_tile(
            x_ptr,
            token * x_row,
            token < T,
            shared_gate_ptr + at,
            shared_up_ptr + at,
            act_ptr,
            T * K + part * T + token,
            D,
            F,
            M,
            BLOCK_F,
            BLOCK_D,
        )


@triton.jit
def _down_tile(
    act_ptr,
    act_rows,
    is_row,
    down_ptr,
    weight,
    y_ptr,
    y_rows,
    DOWN_ROW: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """M activations, at act_rows, through a tile of down; times their weight to y_rows."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_d = d < D
    y = tl.zeros([M, BLOCK_D], tl.float32)
    for start in range(0, F, BLOCK_F):
        f = start + tl.arange(0, BLOCK_F)
        is_f = f < F
        act = tl.load(
            act_ptr + act_rows[:, None] * F + f[None, :],
            mask=is_row[:, None] & is_f[None, :],
            other=0.0,
        )
        down_FD = tl.load(
            down_ptr + d[None, :] * DOWN_ROW + f[:, None],
            mask=is_d[None, :] & is_f[:, None],
            other=0.0,
        )
        y = tl.dot(act, down_FD, y, input_precision="ieee")
    y = (y * weight[:, None]).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + y_rows[:, None] * D + d[None, :], y, mask=is_row[:, None] & is_d[None, :])


@triton.jit(do_not_specialize=["T", "B"])
def _down_tiles(
    act_ptr,
    order_ptr,
    blocks_ptr,
    weights_ptr,
    down_ptr,
    shared_down_ptr,
    y_ptr,
    T,
    B,
    K: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    block = tl.program_id(1)
    m = tl.arange(0, M)
    if block < B:
        expert = tl.load(blocks_ptr + block * 3).to(tl.int64)
        first = tl.load(blocks_ptr + block * 3 + 1)
        end = tl.load(blocks_ptr + block * 3 + 2)
        if first < end:
            is_row = first + m < end
            choice = tl.load(order_ptr + first + m, mask=is_row, other=0).to(tl.int64)
            weight = tl.load(weights_ptr + choice, mask=is_row, other=0.0).to(tl.float32)
            _down_tile(
                act_ptr,
                (first + m).to(tl.int64),
                is_row,
                down_ptr + expert * (D * F),
                weight,
                y_ptr,
                choice // K * (K + S) + choice % K,
                F,
                D,
                F,
                M,
                BLOCK_D,
                BLOCK_F,
            )
    else:
        blocks = tl.cdiv(T, M)
        part = ((block - B) // blocks).to(tl.int64)
        token = ((block - B) % blocks * M + m).to(tl.int64)
        _down_tile(
            act_ptr,
            T * K + part * T + token,
            token < T,
            shared_down_ptr + part * F,
            tl.full([M], 1.0, tl.float32),
            y_ptr,
            token * (K + S) + K + part,
            S * F,
            D,
            F,
            M,
            BLOCK_D,
            BLOCK_F,
        )


@triton.jit
def _add_choices(y_ptr, out_ptr, C: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for c in tl.static_range(C):
        total += tl.load(y_ptr + (token * C + c) * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * D + d, total.to(out_ptr.dtype.element_ty), mask=d < D)
