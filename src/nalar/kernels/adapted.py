"""Rows times a matrix that an adapter of low rank is folded into: the adapter learns, the matrix does not."""

# I and O widths, of what comes in and goes out · R rank · rows are all axes of x but the last

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.kernels.linear import may_use_onednn, product, wide_product


def adapted_reference(
    x: Tensor, base_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scaling: float
) -> Tensor:
    """The oracle of `adapted_linear`, differentiated by autograd: x [..., I] to [..., O]."""
    return F.linear(x, base_OI + scaling * (up_OR @ down_RI))


def folded(base_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scaling: float) -> Tensor:
    """base + scaling * up @ down, summed in float32 and rounded once, in the dtype of the base."""
    return torch.addmm(base_OI.float(), up_OR, down_RI, alpha=scaling).to(base_OI.dtype)


def adapted_linear(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    down_RI: Tensor,
    up_OR: Tensor,
    scaling: float,
) -> Tensor:
    """x [..., I] times the transposed weight, plus bias: [..., O], to the bit what `linear` gives.

    weight: what `folded` made of base and adapter; it has no gradient, and neither has the bias. down and up, fp32,
    get theirs as if the weight had been computed from them here, without the product of the size of the weight that
    its own gradient takes.
    """
    out: Tensor = _Adapted.apply(x, weight_OI, bias_O, down_RI, up_OR, scaling)  # type: ignore[no-untyped-call]
    return out


def _times(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """As `linear`, without a gradient."""
    if not torch.compiler.is_compiling() or not may_use_onednn(x):
        return F.linear(x, weight_OI, bias_O)
    out = product(x.flatten(0, -2), weight_OI).view(*x.shape[:-1], weight_OI.shape[0])
    return out if bias_O is None else out + bias_O


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        down_RI: Tensor,
        up_OR: Tensor,
        scaling: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_OI, down_RI, up_OR)
        ctx.scaling = scaling
        return _times(x, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI, down_RI, up_OR = ctx.saved_tensors
        grad_x = _times(grads[0], weight_OI.T) if ctx.needs_input_grad[0] else None
        x_NI, grad_NO = x.flatten(0, -2), grads[0].flatten(0, -2)
        within_NR = x_NI @ down_RI.T.to(x.dtype)
        grad_within_NR = grad_NO @ up_OR.to(grad_NO.dtype)
        grad_up = wide_product(grad_NO.T, within_NR) * ctx.scaling
        grad_down = wide_product(grad_within_NR.T, x_NI) * ctx.scaling
        return grad_x, None, None, grad_down, grad_up, None
