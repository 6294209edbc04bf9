"""A few rows times one matrix, or two: at the speed at which the weights can be read.

Libraries make their tiles for many rows and take some 4 us however small the matrix (seen on an H200). Here every
program reads a few rows of the weight from end to end, with all rows of x beside them.
"""

# N rows · A width of x · B rows of the weight, the width of the result

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_ROWS = 16
"""The least side of a product on tensor cores."""
BLOCK_B, BLOCK_A, WARPS, STAGES = 16, 256, 4, 4
"""Not measured yet."""


def few_rows(x_NA: Tensor, weights_BA: tuple[Tensor, ...]) -> list[Tensor]:
    """x times each of one or two transposed weights, [N, B] each, summed in fp32.

    At most 16 rows, any strides but the last's, which is 1; all of one dtype.
    """
    N, A = x_NA.shape
    assert N <= MOST_ROWS and len(weights_BA) in (1, 2)
    first, last = weights_BA[0], weights_BA[-1]
    outs = [torch.empty((N, len(w)), dtype=x_NA.dtype, device=x_NA.device) for w in weights_BA]
    blocks = triton.cdiv(len(first), BLOCK_B)
    more = triton.cdiv(len(last), BLOCK_B) if len(weights_BA) == 2 else 0
    _few_rows_kernel[(blocks + more,)](
        x_NA,
        first,
        last,
        outs[0],
        outs[-1],
        N,
        len(first),
        len(last),
        x_NA.stride(0),
        first.stride(0),
        last.stride(0),
        blocks,
        A=A,
        IS_PAIR=more > 0,
        ROWS=MOST_ROWS,
        BLOCK_B=BLOCK_B,
        BLOCK_A=min(BLOCK_A, max(16, triton.next_power_of_2(A))),
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return outs


@triton.jit
def _few_rows_kernel(
    x_ptr,
    first_ptr,
    last_ptr,
    first_out_ptr,
    last_out_ptr,
    N,
    first_B,
    last_B,
    x_stride,
    first_stride,
    last_stride,
    first_blocks,
    A: tl.constexpr,
    IS_PAIR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_A: tl.constexpr,
):
    block = tl.program_id(0)
    w_ptr = first_ptr
    out_ptr = first_out_ptr
    B = first_B
    w_stride = first_stride
    if IS_PAIR and block >= first_blocks:
        block -= first_blocks
        w_ptr = last_ptr
        out_ptr = last_out_ptr
        B = last_B
        w_stride = last_stride
    n = tl.arange(0, ROWS)
    b = block * BLOCK_B + tl.arange(0, BLOCK_B)
    a = tl.arange(0, BLOCK_A)
    x_at = x_ptr + n[:, None] * x_stride + a[None, :]
    w_at = w_ptr + b[:, None].to(tl.int64) * w_stride + a[None, :]
    out = tl.zeros((ROWS, BLOCK_B), tl.float32)
    for start in range(0, A, BLOCK_A):
        inside = (start + a < A)[None, :]
        w = tl.load(w_at + start, mask=inside & (b < B)[:, None], other=0.0)
        x = tl.load(x_at + start, mask=inside & (n < N)[:, None], other=0.0)
        out = tl.dot(x, tl.trans(w), out, input_precision="ieee")
    at = out_ptr + n[:, None] * B + b[None, :]
    tl.store(at, out, mask=(n < N)[:, None] & (b < B)[None, :])
