"""`kernels.rows` as one kernel each, where torch takes some twenty."""

# Letters as in kernels/rows.py

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _gather_kernel(
    rows,
    limits,
    ids,
    positions,
    tables,
    ids_out,
    positions_out,
    slots_out,
    tables_out,
    stride,
    W,
    S,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0)
    row = tl.load(rows + b)
    limit = tl.load(limits + b)
    newest = tl.load(positions + row)
    position = tl.minimum(newest, limit - 1)
    block = tl.load(tables + row * stride + position // S)
    slot = tl.where(newest < limit, block * S + position % S, 0)
    tl.store(ids_out + b, tl.load(ids + row))
    tl.store(positions_out + b, position)
    tl.store(slots_out + b, slot)
    for start in range(0, W, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < W
        found = tl.load(tables + row * stride + at, mask=inside, other=0)
        tl.store(tables_out + b.to(tl.int64) * W + at, found, mask=inside)


def gather_newest(
    rows_B: Tensor,
    limits_B: Tensor,
    ids_R: Tensor,
    positions_R: Tensor,
    tables_RM: Tensor,
    width: int,
    block_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, positions, slots [B] and tables [B, W], all int64; positions and limits are not negative."""
    B = len(rows_B)
    ids_B, positions_B, slots_B = (torch.empty_like(rows_B) for _ in range(3))
    tables_BW = rows_B.new_empty(B, width)
    _gather_kernel[(B,)](
        rows_B,
        limits_B,
        ids_R,
        positions_R,
        tables_RM,
        ids_B,
        positions_B,
        slots_B,
        tables_BW,
        tables_RM.stride(0),
        width,
        block_size,
        BLOCK=64,
    )
    return ids_B, positions_B, slots_B, tables_BW


@triton.jit
def _scatter_kernel(
    rows,
    positions,
    new_ids,
    new_logprobs,
    new_processed,
    ids,
    newest,
    kept_ids,
    kept_logprobs,
    kept_processed,
    step,
    stride,
    B,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < B
    row = tl.load(rows + b, mask=inside, other=0)
    token = tl.load(new_ids + b, mask=inside, other=0)
    # Rows of padding are all the same one, which is nobody's: whichever writes last.
    tl.store(ids + row, token, mask=inside)
    tl.store(newest + row, tl.load(positions + b, mask=inside, other=0), mask=inside)
    at = tl.load(step) * stride + b
    tl.store(kept_ids + at, token, mask=inside)
    tl.store(kept_logprobs + at, tl.load(new_logprobs + b, mask=inside), mask=inside)
    tl.store(kept_processed + at, tl.load(new_processed + b, mask=inside), mask=inside)


def scatter_newest(
    rows_B: Tensor,
    positions_B: Tensor,
    drawn_3B: tuple[Tensor, Tensor, Tensor],
    ids_R: Tensor,
    positions_R: Tensor,
    kept_3KB: tuple[Tensor, Tensor, Tensor],
    at_1: Tensor,
) -> None:
    """Ids, logprobs and processed logprobs to the rows and to row `at_1` of kept_3KB, which have one stride."""
    B = len(rows_B)
    assert len({kept.stride(0) for kept in kept_3KB}) == 1
    drawn = [x.contiguous() for x in drawn_3B]
    _scatter_kernel[(triton.cdiv(B, 128),)](
        rows_B,
        positions_B,
        *drawn,
        ids_R,
        positions_R,
        *kept_3KB,
        at_1,
        kept_3KB[0].stride(0),
        B,
        BLOCK=128,
    )
