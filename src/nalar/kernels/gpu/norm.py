"""Root-mean-square norm of rows, with what is added to them before in the same pass. For inference: no gradient."""

# N rows · D width

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_WIDTH = 8192
"""A row is held by one program."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def why_not(x: Tensor) -> str | None:
    """What these kernels do not take, if anything."""
    if x.shape[-1] > MOST_WIDTH:
        return f"rows of {x.shape[-1]} numbers, above {MOST_WIDTH}"
    return None if x.dtype in DTYPES else f"rows of {x.dtype}"


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight in float32, rounded once to the dtype of x; x: [..., D], of any strides."""
    x_ND = _rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x_ND, x_ND, weight_D, out, out, eps, 1.0, adds=False)
    return out


def add_rms_norm(
    x: Tensor, y: Tensor, weight_D: Tensor, eps: float, scale: float
) -> tuple[Tensor, Tensor]:
    """x + scale * y, rounded after the product and after the sum as torch does, and the norm of that."""
    total, out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    _launch(_rows(x), _rows(y), weight_D, total, out, eps, scale, adds=True)
    return total, out


def _rows(x: Tensor) -> Tensor:
    x_ND = x.reshape(-1, x.shape[-1])
    return x_ND if x_ND.stride(1) == 1 else x_ND.contiguous()


def _launch(
    x_ND: Tensor,
    y_ND: Tensor,
    weight_D: Tensor,
    total: Tensor,
    out: Tensor,
    eps: float,
    scale: float,
    *,
    adds: bool,
) -> None:
    N, D = x_ND.shape
    if N == 0:
        return
    block = triton.next_power_of_2(D)
    _norm_row[(N,)](
        x_ND,
        y_ND,
        weight_D,
        total,
        out,
        x_ND.stride(0),
        y_ND.stride(0),
        eps,
        scale,
        D=D,
        ADDS=adds,
        BLOCK_D=block,
        num_warps=min(max(block // 512, 1), 16),
    )


@triton.jit
def _norm_row(
    x_ptr,
    y_ptr,
    weight_ptr,
    total_ptr,
    out_ptr,
    x_row,
    y_row,
    eps,
    scale,
    D: tl.constexpr,
    ADDS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    is_in = d < D
    x = tl.load(x_ptr + row * x_row + d, mask=is_in, other=0.0)
    weight = tl.load(weight_ptr + d, mask=is_in, other=0.0).to(tl.float32)
    if ADDS:
        y = tl.load(y_ptr + row * y_row + d, mask=is_in, other=0.0).to(tl.float32)
        y = (y * scale).to(x.dtype).to(tl.float32)
        x = (x.to(tl.float32) + y).to(x.dtype)
        tl.store(total_ptr + row * D + d, x, mask=is_in)
    x = x.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, 0) / D + eps)
    tl.store(out_ptr + row * D + d, x * inverse * weight, mask=is_in)
