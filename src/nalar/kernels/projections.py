"""Products of the same rows with several matrices, and of each head with its own."""

# N rows · H heads · A and B widths

import torch
from torch import Tensor

from nalar.kernels import switch
from nalar.kernels.linear import linear


def projections(x_NA: Tensor, *layers: tuple[Tensor, Tensor | None]) -> list[Tensor]:
    """Rows times each transposed weight [B, A], plus its bias [B], if any: [N, B] each.

    The kernel, for a few rows and inference alone, reads the rows once and is one launch for all of them.
    """
    if not torch.is_grad_enabled() and switch.runs("projections", x_NA):
        from nalar.kernels.gpu import projections as gpu

        if gpu.takes(x_NA, *layers):
            return gpu.projections(x_NA, *layers)
    return [linear(x_NA, weight_BA, bias_B) for weight_BA, bias_B in layers]


def head_by_head(x_NHA: Tensor, weight_HAB: Tensor) -> Tensor:
    """Each head times a matrix of its own: [N, H, B]."""
    if torch.is_grad_enabled() or not switch.runs("projections", x_NHA):
        return torch.bmm(x_NHA.transpose(0, 1), weight_HAB).transpose(0, 1)
    # Written where the next product reads it: the library takes rows at any distance, and copies nothing.
    out_NHB = x_NHA.new_empty(*x_NHA.shape[:2], weight_HAB.shape[-1])
    torch.bmm(x_NHA.transpose(0, 1), weight_HAB, out=out_NHB.transpose(0, 1))
    return out_NHB
