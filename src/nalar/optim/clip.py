"""The global norm of gradients and its ceiling, without asking the device to wait."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def clip_global_norm_(
    gradients: Sequence[Tensor], norms: Sequence[Tensor], max_norm: float | None
) -> Tensor:
    """Scale all gradients, in place and by one factor, down to a joint norm of `max_norm`.

    norms: [] of disjoint parts that together are the gradients. Returns the norm before, float32 [];
    where it is not finite, neither are the gradients after. max_norm: None only measures.
    """
    norm: Tensor = torch.stack(list(norms)).norm()
    if max_norm is not None:
        factor = (max_norm / norm).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)
    return norm
