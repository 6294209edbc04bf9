"""Root-mean-square norm over the last dimension (arXiv:1910.07467)."""

# N tokens · D width

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.kernels import switch


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, in the dtype of x; x: [..., D].

    On a CPU torch has no fused kernel for it, and its derivative takes some twenty passes; here it takes eight.
    """
    if _use_kernel(x):
        from nalar.kernels.gpu import norm

        return norm.rms_norm(x, weight_D, eps)
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        if not torch.is_grad_enabled():  # without the cost of a node that nobody asks for
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            mean_square = torch.addcmul(_constant(eps), length, length, value=1 / x.shape[-1])
            return (x * mean_square.rsqrt_()).mul_(weight_D)
        out: Tensor = _RMSNorm.apply(x, weight_D, eps)  # type: ignore[no-untyped-call]
        return out
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


def add_rms_norm(
    x: Tensor, y: Tensor, weight_D: Tensor, eps: float, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """x + scale * y, and the norm of that; both [..., D]. The kernel is for inference alone."""
    if _use_kernel(x):
        from nalar.kernels.gpu import norm

        return norm.add_rms_norm(x, y, weight_D, eps, scale)
    total = x + (y if scale == 1 else y * scale)
    return total, rms_norm(total, weight_D, eps)


def _use_kernel(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not switch.runs("rms_norm", x):
        return False
    from nalar.kernels.gpu import norm

    why = norm.why_not(x)
    if why is not None:
        switch.refuse("rms_norm", why)
    return why is None


@functools.cache
@torch.inference_mode(False)
def _constant(value: float) -> Tensor:
    """float32 [1], on the CPU: a tensor of its own would take as long to make as a norm of few rows."""
    return torch.tensor([value])


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * inverse, inverse


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        normed, inverse = _normed(x, eps)
        ctx.save_for_backward(normed, inverse, weight_D)
        out: Tensor = normed * weight_D
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, inverse, weight_D = ctx.saved_tensors
        (grad,) = grads
        scratch = grad * normed
        grad_weight_D = scratch.reshape(-1, len(weight_D)).sum(0)
        along = torch.mv(scratch.reshape(-1, len(weight_D)), weight_D).view_as(inverse)
        grad_x = (grad * weight_D).addcmul_(normed, along, value=-1 / normed.shape[-1])
        return grad_x.mul_(inverse), grad_weight_D, None
