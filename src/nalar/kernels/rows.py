"""The two ends of a decode step: from rows to what the model is called with, and from what was drawn back to rows."""

# R rows of an engine · B those of the step, padding included · M blocks of a row, W of them in use · S slots of a block
# K steps of a run

from typing import NamedTuple

import torch
from torch import Tensor

from nalar.kernels import switch

NOBODY = 0
"""Slot that is written to in place of one that a row does not have."""


class Newest(NamedTuple):
    """What a step computes: the newest token of each row."""

    ids_B: Tensor
    positions_B: Tensor
    slots_B: Tensor
    tables_BW: Tensor


def newest(
    rows_B: Tensor,
    limits_B: Tensor,
    ids_R: Tensor,
    positions_R: Tensor,
    tables_RM: Tensor,
    *,
    width: int,
    block_size: int,
) -> Newest:
    """Gathers from rows; all int64. A row at its limit or beyond stays at the last position before it, and writes to
    nobody's slot.
    """
    if switch.runs("rows", rows_B):
        from nalar.kernels.gpu.rows import gather_newest

        return Newest(
            *gather_newest(rows_B, limits_B, ids_R, positions_R, tables_RM, width, block_size)
        )
    newest_B = positions_R[rows_B]
    positions_B = torch.minimum(newest_B, limits_B - 1)
    blocks_B = tables_RM[rows_B, positions_B.div(block_size, rounding_mode="floor")]
    slots_B = blocks_B * block_size + positions_B % block_size
    slots_B = slots_B.where(newest_B < limits_B, NOBODY)
    return Newest(ids_R[rows_B], positions_B, slots_B, tables_RM[rows_B, :width])


def keep(
    rows_B: Tensor,
    positions_B: Tensor,
    ids_B: Tensor,
    logprobs_B: Tensor,
    processed_B: Tensor,
    ids_R: Tensor,
    positions_R: Tensor,
    kept_3KB: tuple[Tensor, Tensor, Tensor],
    at_1: Tensor,
) -> None:
    """Rows take the tokens drawn for these positions as their newest; step `at_1` of a run is noted, and counted on.

    kept_3KB: int64, float32 and float32 [K, at least B].
    """
    if switch.runs("rows", rows_B):
        from nalar.kernels.gpu.rows import scatter_newest

        scatter_newest(
            rows_B,
            positions_B,
            (ids_B, logprobs_B, processed_B),
            ids_R,
            positions_R,
            kept_3KB,
            at_1,
        )
    else:
        ids_R[rows_B] = ids_B
        positions_R[rows_B] = positions_B
        for kept_KB, values_B in zip(kept_3KB, (ids_B, logprobs_B, processed_B), strict=True):
            kept_KB[:, : len(values_B)].index_copy_(0, at_1, values_B[None])
    at_1 += 1
