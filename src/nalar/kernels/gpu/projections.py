"""A few rows times up to three matrices in one launch. Bound by the bytes of the matrices: no tensor cores.

One program makes BLOCK_B numbers of every row, over the whole of the input. For inference: no gradient.
"""

# N rows · A and B widths

import torch
import triton
import triton.language as tl
from torch import Tensor

from nalar.kernels.gpu.linked import linked, wait

MOST_ROWS = 4
"""More are products that libraries are good at."""
MOST_LAYERS = 3
BLOCK_B = 4
VOLUME = 8192
"""Products that a program holds at a time, of all its rows. On an H200 others make no difference, nor do blocks of 2
to 8."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

Layer = tuple[Tensor, Tensor | None]


def takes(x_NA: Tensor, *layers: Layer) -> bool:
    """Whether these kernels take that: in a step of many rows they do not, which is no fault."""
    fits = x_NA.dim() == 2 and 0 < len(x_NA) <= MOST_ROWS and len(layers) <= MOST_LAYERS
    tensors = [x_NA, *(x for layer in layers for x in layer if x is not None)]
    return fits and all(x.dtype in DTYPES and x.stride(-1) == 1 for x in tensors)


def projections(x_NA: Tensor, *layers: Layer) -> list[Tensor]:
    """[N, B] for each weight [B, A] and bias [B], which all have one or none has; side by side in memory."""
    (N, A), rows = x_NA.shape, triton.next_power_of_2(len(x_NA))
    widths = [len(weight_BA) for weight_BA, _ in layers]
    out_NB = torch.empty((N, sum(widths)), dtype=x_NA.dtype, device=x_NA.device)
    given = [*layers, *[layers[0]] * (MOST_LAYERS - len(layers))]
    block_a = min(triton.next_power_of_2(A), VOLUME // BLOCK_B // rows)
    _project[(sum(triton.cdiv(B, BLOCK_B) for B in widths),)](
        x_NA,
        *(weight_BA for weight_BA, _ in given),
        *(x_NA if bias_B is None else bias_B for _, bias_B in given),
        out_NB,
        x_NA.stride(0),
        *(weight_BA.stride(0) for weight_BA, _ in given),
        *(bias_B is not None for _, bias_B in given),
        *widths,
        *[0] * (MOST_LAYERS - len(layers)),
        N=N,
        A=A,
        ROWS=rows,
        BLOCK_A=block_a,
        BLOCK_B=BLOCK_B,
        num_warps=4,
        **linked(x_NA),
    )
    return list(out_NB.split(widths, dim=1))


@triton.jit
def _project(
    x_ptr,
    weight_0,
    weight_1,
    weight_2,
    bias_0,
    bias_1,
    bias_2,
    out_ptr,
    x_row,
    row_0,
    row_1,
    row_2,
    HAS_BIAS_0: tl.constexpr,
    HAS_BIAS_1: tl.constexpr,
    HAS_BIAS_2: tl.constexpr,
    B_0: tl.constexpr,
    B_1: tl.constexpr,
    B_2: tl.constexpr,
    N: tl.constexpr,
    A: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    LINKED: tl.constexpr,
):
    """Programs of the first matrix, then of the second and the third."""
    wait(LINKED)
    START_1: tl.constexpr = (B_0 + BLOCK_B - 1) // BLOCK_B
    START_2: tl.constexpr = START_1 + (B_1 + BLOCK_B - 1) // BLOCK_B
    OUT: tl.constexpr = B_0 + B_1 + B_2
    program = tl.program_id(0)
    if program < START_1:
        _tile(
            x_ptr, weight_0, bias_0, out_ptr, program, x_row, row_0,
            HAS_BIAS_0, B_0, OUT, N, A, ROWS, BLOCK_A, BLOCK_B,
        )  # fmt: skip
    elif program < START_2:
        _tile(
            x_ptr, weight_1, bias_1, out_ptr + B_0, program - START_1, x_row, row_1,
            HAS_BIAS_1, B_1, OUT, N, A, ROWS, BLOCK_A, BLOCK_B,
        )  # fmt: skip
    else:
        _tile(
            x_ptr, weight_2, bias_2, out_ptr + B_0 + B_1, program - START_2, x_row, row_2,
            HAS_BIAS_2, B_2, OUT, N, A, ROWS, BLOCK_A, BLOCK_B,
        )  # fmt: skip


@triton.jit
def _tile(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    tile,
    x_row,
    weight_row,
    HAS_BIAS: tl.constexpr,
    B: tl.constexpr,
    OUT: tl.constexpr,
    N: tl.constexpr,
    A: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """BLOCK_B numbers of every row, summed in float32."""
    n = tl.arange(0, ROWS)
    b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    out = tl.zeros([ROWS, BLOCK_B], tl.float32)
    weight_at = weight_ptr + b.to(tl.int64)[:, None] * weight_row
    for start in range(0, A, BLOCK_A):
        a = start + tl.arange(0, BLOCK_A)
        x = tl.load(
            x_ptr + (n * x_row)[:, None] + a[None, :],
            mask=(n < N)[:, None] & (a < A)[None, :],
            other=0.0,
        ).to(tl.float32)
        weight = tl.load(
            weight_at + a[None, :], mask=(b < B)[:, None] & (a < A)[None, :], other=0.0
        ).to(tl.float32)
        out += tl.sum(x[:, None, :] * weight[None, :, :], 2)
    if HAS_BIAS:
        out += tl.load(bias_ptr + b, mask=b < B, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out_ptr + (n * OUT)[:, None] + b[None, :], out, mask=(n < N)[:, None] & (b < B)[None, :]
    )
