"""Products of the same rows with several matrices."""

# N rows · A and B widths

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
