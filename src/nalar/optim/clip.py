"""The global norm of gradients and its ceiling."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def clip_global_norm_(gradients: Sequence[Tensor], max_norm: float | None) -> float:
    """Scale all gradients, in place and by one factor, down to a joint norm of `max_norm`.

    Returns the norm before; where that is not finite the gradients stay as they are.
    max_norm: None only measures.
    """
    norm = float(torch.stack(torch._foreach_norm(list(gradients))).norm())
    if max_norm is not None and math.isfinite(norm) and norm > max_norm:
        torch._foreach_mul_(list(gradients), max_norm / norm)
    return norm
