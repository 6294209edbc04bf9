"""Rows times a matrix: by the faster of two libraries on a CPU, by a kernel of our own for few rows on a GPU."""

# A and B widths · rows are all axes of x but the last

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.kernels import switch
from nalar.kernels.opaque import opaque

LEAST_ROWS = 256
"""oneDNN makes code for each number of rows it meets, which takes longer than ten products of this size, so it gets
multiples of this and no less."""


def _is_mkl_held_back() -> bool:
    """Whether MKL leaves half the vector width unused: on a CPU with AVX-512 that Intel did not make."""
    if (
        torch.backends.cpu.get_cpu_capability() != "AVX512"
        or not torch.backends.mkldnn.is_available()
    ):
        return False
    path = Path("/proc/cpuinfo")
    seen = path.read_text() if path.is_file() else platform.processor()
    return "AuthenticAMD" in seen


_ONEDNN = torch.ops.mkldnn._linear_pointwise.default
MKL_IS_HELD_BACK = _is_mkl_held_back()


def linear(x: Tensor, weight_BA: Tensor, bias_B: Tensor | None = None) -> Tensor:
    """x [..., A] times the transposed weight, plus bias: [..., B]; as torch's own, to rounding."""
    if x.is_cuda or switch.is_forced("few_row_linear"):
        return linears(x, weight_BA)[0] if bias_B is None else F.linear(x, weight_BA, bias_B)
    if not torch.compiler.is_compiling() or not may_use_onednn(x):
        return F.linear(x, weight_BA, bias_B)
    out: Tensor = _Linear.apply(x, weight_BA)  # type: ignore[no-untyped-call]
    return out if bias_B is None else out + bias_B


def linears(x: Tensor, *weights_BA: Tensor) -> Sequence[Tensor]:
    """The same x times one or two transposed weights: [..., B] each. Few rows on a GPU: in one launch."""
    if not _has_few_rows(x, weights_BA):
        return [F.linear(x, weight_BA) for weight_BA in weights_BA]
    from nalar.kernels.gpu.linear import few_rows

    return few_rows(x, weights_BA)


def _has_few_rows(x: Tensor, weights_BA: Sequence[Tensor]) -> bool:
    if x.dim() != 2 or not 1 <= len(x) <= 16 or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights_BA)):
        return False
    is_read_along = all(t.stride(-1) == 1 and t.dtype == x.dtype for t in (x, *weights_BA))
    return is_read_along and switch.runs("few_row_linear", x)


def may_use_onednn(x: Tensor) -> bool:
    """Whether oneDNN is the faster one for products of many such rows."""
    return MKL_IS_HELD_BACK and x.device.type == "cpu" and x.dtype == torch.float32


def _use_onednn(x: Tensor) -> bool:
    return may_use_onednn(x) and torch._C._get_mkldnn_enabled()


def _product_shape(x_RA: Tensor, weight_BA: Tensor) -> Tensor:
    return x_RA.new_empty(x_RA.shape[0], weight_BA.shape[0])


@opaque(_product_shape)
def product(x_RA: Tensor, weight_BA: Tensor) -> Tensor:
    """Rows times the transposed weight, without gradient: [R, B]."""
    whole = len(x_RA) - len(x_RA) % LEAST_ROWS
    if not _use_onednn(x_RA) or whole == 0:
        return x_RA @ weight_BA.T
    most_RA = x_RA if whole == len(x_RA) else x_RA[:whole]
    out: Tensor = _ONEDNN(most_RA, weight_BA, None, "none", [], "")
    return out if most_RA is x_RA else torch.cat([out, x_RA[whole:] @ weight_BA.T])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_BA: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_BA)
        return product(x.flatten(0, -2), weight_BA).view(*x.shape[:-1], weight_BA.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight_BA = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)
        grad_x = product(grad, weight_BA.T).view(x.shape)
        return grad_x, grad.T @ x.flatten(0, -2)
