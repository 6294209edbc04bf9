"""AdamW on one flat buffer: a handful of operations however many parameters there are."""

from collections.abc import Mapping

import torch
from torch import Tensor


class FlatAdamW:
    """Moments of all parameters end to end. Decay and learning rate are the caller's."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        device = next(iter(parameters.values())).device
        size = sum(p.numel() for p in parameters.values())
        self.gradient_flat = torch.zeros(size, dtype=torch.float32, device=device)
        self.exp_avg_flat = torch.zeros_like(self.gradient_flat)
        self.exp_avg_sq_flat = torch.zeros_like(self.gradient_flat)
        self.gradient = _views(self.gradient_flat, parameters)
        """Views shaped as the parameters; `to_direction` leaves the direction of the step here."""
        self.exp_avg = _views(self.exp_avg_flat, parameters)
        self.exp_avg_sq = _views(self.exp_avg_sq_flat, parameters)

    def to_direction(
        self, step: Tensor, counts: Tensor, betas: tuple[float, float], eps: float
    ) -> None:
        """Turn the gathered gradients, in place, into m / (sqrt(v) + eps), both bias-corrected.

        step: int64 [], counted from 1. counts: bool []. False: the gradients are 0, and the moments
        stay as they are.
        """
        beta1, beta2 = betas
        self.exp_avg_flat.lerp_(self.gradient_flat, counts * (1 - beta1))
        self.exp_avg_sq_flat.mul_(torch.where(counts, beta2, 1.0)).addcmul_(
            self.gradient_flat, self.gradient_flat, value=1 - beta2
        )
        step = step.clamp(min=1).double()
        bias1, bias2 = 1 - beta1**step, 1 - beta2**step
        # The first moment's correction goes into the denominator, which saves a pass.
        denominator = torch.sqrt(self.exp_avg_sq_flat, out=self.gradient_flat)
        denominator.mul_((bias1 / bias2.sqrt()).float()).add_((eps * bias1).float())
        torch.div(self.exp_avg_flat, denominator, out=self.gradient_flat)


def _views(flat: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    views: dict[str, Tensor] = {}
    start = 0
    for name, parameter in parameters.items():
        end = start + parameter.numel()
        views[name] = flat[start:end].view(parameter.shape)
        start = end
    return views
