"""The router in one launch: product with the weight where it is small, scores, groups, top-k, weights. No gradient.

One program a token, all in float32. Of equal merits the expert of the lower number is chosen. Always K different
experts, whatever numbers came: one that is not a number has no merit, but its weight says so.
"""

# T tokens · D hidden · E experts · K experts per token · G groups of M experts each

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_EXPERTS = 4096
OWN_PRODUCT = 65_536
"""E * D up to which each program reads the whole weight. Not measured yet."""
OWN_PRODUCT_ROWS = 512
"""T up to which they do. Not measured yet."""
TILE, WARPS, ROW_WARPS = 16_384, 8, 4
"""Weights taken at a time; warps with the product and without it. Not measured yet."""


class Choice(NamedTuple):
    """How experts are chosen: what a model's configuration says."""

    experts: int
    """K"""
    groups: int
    groups_kept: int
    is_sigmoid: bool
    is_normed: bool
    scale: float


def why_not(x_TD: Tensor, weight_ED: Tensor) -> str | None:
    """What `route` does not take, if anything."""
    if x_TD.dtype not in DTYPES or weight_ED.dtype not in DTYPES:
        return f"rows of {x_TD.dtype} and a weight of {weight_ED.dtype}"
    return f"{len(weight_ED)} experts" if len(weight_ED) > MOST_EXPERTS else None


def route(
    x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, choice: Choice
) -> tuple[Tensor, Tensor]:
    """Expert ids int64 [T, K], best first, and their weights float32 [T, K].

    bias_E: float32, what merits have and weights do not. The product is in float32 over the weight as it is stored.
    """
    T, (E, D) = len(x_TD), weight_ED.shape
    ids_TK = torch.empty((T, choice.experts), dtype=torch.int64, device=x_TD.device)
    weights_TK = torch.empty((T, choice.experts), dtype=torch.float32, device=x_TD.device)
    if T == 0:
        return ids_TK, weights_TK
    own = E * D <= OWN_PRODUCT and T <= OWN_PRODUCT_ROWS
    rows = x_TD if own else logits(x_TD, weight_ED)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    weight_ED = weight_ED.contiguous()
    G, M = choice.groups, E // choice.groups
    block_g, block_m = triton.next_power_of_2(G), triton.next_power_of_2(M)
    block_e = block_g * block_m
    _route[(T,)](
        *(rows, weight_ED, rows if bias_E is None else bias_E, ids_TK, weights_TK),
        *(rows.stride(0), choice.scale),
        G=G,
        M=M,
        D=D,
        K=choice.experts,
        KEPT=choice.groups_kept,
        OWN=own,
        BIAS=bias_E is not None,
        SIGMOID=choice.is_sigmoid,
        NORM=choice.is_normed,
        BLOCK_G=block_g,
        BLOCK_M=block_m,
        BLOCK_D=min(max(TILE // block_e, 16), triton.next_power_of_2(D)),
        BLOCK_K=triton.next_power_of_2(choice.experts),
        num_warps=WARPS if own else ROW_WARPS,
    )
    return ids_TK, weights_TK


def logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """x times the transposed weight, float32 [T, E], with sums in float32."""
    if x_TD.is_cuda and x_TD.dtype == weight_ED.dtype != torch.float32:
        out: Tensor = torch.mm(x_TD, weight_ED.T, out_dtype=torch.float32)
        return out
    return x_TD.float() @ weight_ED.float().T


@triton.jit
def _route(
    rows_ptr,  # x, or logits
    weight_ptr,
    bias_ptr,
    ids_ptr,
    weights_ptr,
    row_stride,
    scale,
    G: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    KEPT: tl.constexpr,
    OWN: tl.constexpr,
    BIAS: tl.constexpr,
    SIGMOID: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    BLOCK_E: tl.constexpr = BLOCK_G * BLOCK_M
    token = tl.program_id(0).to(tl.int64)
    rows_ptr += token * row_stride
    i = tl.arange(0, BLOCK_E)  # groups padded one by one
    is_expert = (i // BLOCK_M < G) & (i % BLOCK_M < M)
    e = i // BLOCK_M * M + i % BLOCK_M
    if OWN:
        part = tl.zeros([BLOCK_E, BLOCK_D], tl.float32)
        for start in tl.static_range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            x = tl.load(rows_ptr + d, mask=d < D, other=0.0).to(tl.float32)
            at = e[:, None] * D + d[None, :]
            is_in = is_expert[:, None] & (d < D)[None, :]
            part += tl.load(weight_ptr + at, mask=is_in, other=0.0).to(tl.float32) * x[None, :]
        logits = tl.sum(part, 1)
    else:
        logits = tl.load(rows_ptr + e, mask=is_expert, other=0.0)
    if SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-logits))
    else:
        logits = tl.where(is_expert, logits, float("-inf"))
        scores = tl.exp(logits - tl.max(logits, 0))
        scores = scores / tl.sum(scores, 0)
    merits = scores
    if BIAS:
        merits += tl.load(bias_ptr + e, mask=is_expert, other=0.0)
    merits = tl.where(is_expert & (merits == merits), merits, float("-inf"))
    if G > 1:
        merits = _of_best_groups(merits, G, KEPT, BLOCK_G, BLOCK_M)

    k = tl.arange(0, BLOCK_K)
    ids = tl.zeros([BLOCK_K], tl.int32)
    weights = tl.zeros([BLOCK_K], tl.float32)
    is_left = is_expert
    for slot in tl.static_range(K):
        best = tl.max(merits, 0)
        # The lowest number of the best. Where only -inf is left, of those that are not taken.
        chosen = tl.min(tl.where(is_left & (merits == best), i, BLOCK_E), 0)
        weight = tl.sum(tl.where(i == chosen, scores, 0.0), 0)
        ids = tl.where(k == slot, chosen // BLOCK_M * M + chosen % BLOCK_M, ids)
        weights = tl.where(k == slot, weight, weights)
        is_left = is_left & (i != chosen)
        merits = tl.where(i == chosen, float("-inf"), merits)
    if NORM:
        weights = weights / (tl.sum(weights, 0) + 1e-20)
    tl.store(ids_ptr + token * K + k, ids.to(tl.int64), mask=k < K)
    tl.store(weights_ptr + token * K + k, weights * scale, mask=k < K)


@triton.jit
def _of_best_groups(
    merits,
    G: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Merits, -inf outside the groups whose two best experts sum to most."""
    merits = tl.reshape(merits, [BLOCK_G, BLOCK_M])
    m = tl.arange(0, BLOCK_M)[None, :]
    g = tl.arange(0, BLOCK_G)
    best = tl.max(merits, 1)
    first = tl.min(tl.where(merits == best[:, None], m, BLOCK_M), 1)
    second = tl.max(tl.where(m == first[:, None], float("-inf"), merits), 1)
    sums = best + second
    is_left = g < G
    is_kept = g < 0
    for _ in tl.static_range(KEPT):
        most = tl.max(sums, 0)
        chosen = tl.min(tl.where(is_left & (sums == most), g, BLOCK_G), 0)
        is_kept = is_kept | (g == chosen)
        is_left = is_left & (g != chosen)
        sums = tl.where(g == chosen, float("-inf"), sums)
    merits = tl.where(is_kept[:, None], merits, float("-inf"))
    return tl.reshape(merits, [BLOCK_G * BLOCK_M])
