"""What surrounds the grouped products of experts over many rows: sorting by expert, SwiGLU, sums over choices.

Each reads and writes its rows once. No atomics and nothing that a host waits for: the same input gives the same bits.
"""

# T tokens · D width · E experts · K choices of a token · F expert width · R = T*K rows · P programs

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SORTED = 1024
"""Choices that one program places; the number of programs is that of columns to add up. Not measured yet."""
CELLS = 8192
"""Choices times experts that a program looks at together. Not measured yet."""
SUMMED = 1024
"""Numbers of one token that a program spreads to its choices, or sums over them. Not measured yet."""
SWIGLU_ROWS, SWIGLU_WIDTH = 16, 128
GRAD_ROWS = 8
"""Not measured yet."""


def sort_routes(ids_TK: Tensor, E: int) -> tuple[Tensor, Tensor, Tensor]:
    """A counting sort by expert, stable: order and place, int32 [R], and ends, int32 [E].

    order: which choice is at each row; place: the row of each choice; ends: where each expert's rows end.
    ids_TK: int64 in [0, E), contiguous.
    """
    R, device = ids_TK.numel(), ids_TK.device
    order_R, place_R, ends_E, sizes_E = (
        torch.empty(n, dtype=torch.int32, device=device) for n in (R, R, E, E)
    )
    P = max(triton.cdiv(R, SORTED), 1)
    count_EP = torch.empty((E, P), dtype=torch.int32, device=device)
    _count_kernel[(P,)](
        *(ids_TK, count_EP, R, P), E=E, BLOCK_R=SORTED, BINS=triton.next_power_of_2(E + 1)
    )
    _scan_kernel[(E,)](count_EP, sizes_E, P, BLOCK_P=max(triton.next_power_of_2(P), 32))
    bins = triton.next_power_of_2(E)
    _place_kernel[(P,)](
        *(ids_TK, count_EP, sizes_E, order_R, place_R, ends_E, R, P),
        E=E,
        BLOCK_R=SORTED,
        CHUNK=min(SORTED, max(CELLS // bins, 16)),
        BINS=bins,
    )
    return order_R, place_R, ends_E


def swiglu(gate_up_R2F: Tensor) -> Tensor:
    """silu(gate) * up, [R, F]; gate_up: contiguous, gate first."""
    R, F = len(gate_up_R2F), gate_up_R2F.shape[1] // 2
    act_RF = torch.empty((R, F), dtype=gate_up_R2F.dtype, device=gate_up_R2F.device)
    if R:
        grid = (triton.cdiv(R, SWIGLU_ROWS), triton.cdiv(F, SWIGLU_WIDTH))
        _swiglu_kernel[grid](
            *(gate_up_R2F, act_RF, R), F=F, BLOCK_R=SWIGLU_ROWS, BLOCK_F=SWIGLU_WIDTH
        )
    return act_RF


def swiglu_backward(
    gate_up_R2F: Tensor, back_RF: Tensor, weights_TK: Tensor, order_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of gate and up [R, 2F], weight times activation [R, F], gradient of the weights [T, K].

    back: gradient of the token's output times down, in which the weight is not yet; so its product with the
    activation is the gradient of the weight, and expert outputs need not be kept. All contiguous.
    """
    R, F = back_RF.shape
    grad_R2F, act_RF = torch.empty_like(gate_up_R2F), torch.empty_like(back_RF)
    grad_weights_TK = torch.empty_like(weights_TK)
    if R:
        _swiglu_backward_kernel[(triton.cdiv(R, GRAD_ROWS),)](
            *(gate_up_R2F, back_RF, weights_TK, order_R, grad_R2F, act_RF, grad_weights_TK, R),
            F=F,
            BLOCK_R=GRAD_ROWS,
            BLOCK_F=SWIGLU_WIDTH,
        )
    return grad_R2F, act_RF, grad_weights_TK


def spread(x_TD: Tensor, place_R: Tensor, K: int) -> Tensor:
    """Each token's row at the places of its K choices, [R, D]: read once, written K times. Contiguous."""
    T, D = x_TD.shape
    rows_RD = torch.empty((T * K, D), dtype=x_TD.dtype, device=x_TD.device)
    if T:
        block = min(SUMMED, triton.next_power_of_2(D))
        _spread_kernel[(T, triton.cdiv(D, block))](x_TD, place_R, rows_RD, K=K, D=D, BLOCK_D=block)
    return rows_RD


def sum_choices(y_RD: Tensor, place_R: Tensor, weights_TK: Tensor | None, K: int) -> Tensor:
    """For each token the sum of its K rows, times their weights if given, added up in float32: [T, D]. Contiguous."""
    (R, D) = y_RD.shape
    out_TD = torch.empty((R // K, D), dtype=y_RD.dtype, device=y_RD.device)
    if R:
        block = min(SUMMED, triton.next_power_of_2(D))
        _sum_kernel[(R // K, triton.cdiv(D, block))](
            *(y_RD, place_R, y_RD if weights_TK is None else weights_TK, out_TD),
            K=K,
            D=D,
            WEIGHTED=weights_TK is not None,
            BLOCK_D=block,
        )
    return out_TD


@triton.jit(do_not_specialize=["R", "P"])
def _count_kernel(
    ids_ptr, count_ptr, R, P, E: tl.constexpr, BLOCK_R: tl.constexpr, BINS: tl.constexpr
):
    p = tl.program_id(0)
    r = p * BLOCK_R + tl.arange(0, BLOCK_R)
    ids = tl.load(ids_ptr + r, mask=r < R, other=E).to(tl.int32)
    e = tl.arange(0, BINS)
    tl.store(count_ptr + e * P + p, tl.histogram(ids, BINS), mask=e < E)


@triton.jit(do_not_specialize=["P"])
def _scan_kernel(count_ptr, sizes_ptr, P, BLOCK_P: tl.constexpr):
    """Counts of one expert to how many of its choices lie before each program's; and how many there are."""
    e = tl.program_id(0)
    p = tl.arange(0, BLOCK_P)
    count_P = tl.load(count_ptr + e * P + p, mask=p < P, other=0)
    tl.store(sizes_ptr + e, tl.sum(count_P, 0))
    tl.store(count_ptr + e * P + p, tl.cumsum(count_P, 0) - count_P, mask=p < P)


@triton.jit(do_not_specialize=["R", "P"])
def _place_kernel(
    ids_ptr,
    before_ptr,
    sizes_ptr,
    order_ptr,
    place_ptr,
    ends_ptr,
    R,
    P,
    E: tl.constexpr,
    BLOCK_R: tl.constexpr,
    CHUNK: tl.constexpr,
    BINS: tl.constexpr,
):
    p = tl.program_id(0)
    e = tl.arange(0, BINS)
    size_E = tl.load(sizes_ptr + e, mask=e < E, other=0)
    end_E = tl.cumsum(size_E, 0)
    next_E = end_E - size_E + tl.load(before_ptr + e * P + p, mask=e < E, other=0)
    if p == 0:
        tl.store(ends_ptr + e, end_E, mask=e < E)
    for start in range(0, BLOCK_R, CHUNK):
        r = p * BLOCK_R + start + tl.arange(0, CHUNK)
        ids = tl.load(ids_ptr + r, mask=r < R, other=-1).to(tl.int32)
        is_e = (ids[:, None] == e[None, :]).to(tl.int32)
        place = tl.sum(is_e * (next_E[None, :] + tl.cumsum(is_e, 0) - 1), 1)
        tl.store(place_ptr + r, place, mask=r < R)
        tl.store(order_ptr + place, r, mask=r < R)
        next_E += tl.sum(is_e, 0)


@triton.jit
def _swiglu_kernel(
    gate_up_ptr, act_ptr, R, F: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr
):
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    is_in = (r < R)[:, None] & (f < F)[None, :]
    at = r[:, None] * (2 * F) + f[None, :]
    gate = tl.load(gate_up_ptr + at, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + F + at, mask=is_in, other=0.0).to(tl.float32)
    act = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(act_ptr + r[:, None] * F + f[None, :], act.to(act_ptr.dtype.element_ty), mask=is_in)


@triton.jit
def _swiglu_backward_kernel(
    gate_up_ptr,
    back_ptr,
    weights_ptr,
    order_ptr,
    grad_ptr,
    act_ptr,
    grad_weights_ptr,
    R,
    F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    choice = tl.load(order_ptr + r, mask=r < R, other=0)
    weight = tl.load(weights_ptr + choice, mask=r < R, other=0.0).to(tl.float32)[:, None]
    part = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    for start in range(0, F, BLOCK_F):
        f = start + tl.arange(0, BLOCK_F)
        is_in = (r < R)[:, None] & (f < F)[None, :]
        at_2F = r[:, None] * (2 * F) + f[None, :]
        at_F = r[:, None] * F + f[None, :]
        gate = tl.load(gate_up_ptr + at_2F, mask=is_in, other=0.0).to(tl.float32)
        up = tl.load(gate_up_ptr + F + at_2F, mask=is_in, other=0.0).to(tl.float32)
        back = tl.load(back_ptr + at_F, mask=is_in, other=0.0).to(tl.float32)
        sigmoid = 1.0 / (1.0 + tl.exp(-gate))
        silu = gate * sigmoid
        act = silu * up
        part += back * act
        back *= weight
        # silu(g) = g*s(g), so silu'(g) = s + g*s*(1-s)
        grad_gate = back * up * (sigmoid + silu * (1.0 - sigmoid))
        tl.store(act_ptr + at_F, (act * weight).to(act_ptr.dtype.element_ty), mask=is_in)
        tl.store(grad_ptr + at_2F, grad_gate.to(grad_ptr.dtype.element_ty), mask=is_in)
        tl.store(grad_ptr + F + at_2F, (back * silu).to(grad_ptr.dtype.element_ty), mask=is_in)
    grad_weight = tl.sum(part, 1).to(grad_weights_ptr.dtype.element_ty)
    tl.store(grad_weights_ptr + choice, grad_weight, mask=r < R)


@triton.jit
def _spread_kernel(
    x_ptr, place_ptr, rows_ptr, K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + token * D + d, mask=d < D, other=0.0)
    for k in tl.static_range(K):
        row = tl.load(place_ptr + token * K + k).to(tl.int64)
        tl.store(rows_ptr + row * D + d, x, mask=d < D)


@triton.jit
def _sum_kernel(
    y_ptr,
    place_ptr,
    weights_ptr,
    out_ptr,
    K: tl.constexpr,
    D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for k in tl.static_range(K):
        row = tl.load(place_ptr + token * K + k).to(tl.int64)
        y = tl.load(y_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        if WEIGHTED:
            y *= tl.load(weights_ptr + token * K + k).to(tl.float32)
        total += y
    tl.store(out_ptr + token * D + d, total.to(out_ptr.dtype.element_ty), mask=d < D)
