"""Momentum and orthogonalisation for all matrices of one shape at once (arXiv:2502.16982)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from nalar.kernels.newton_schulz import orthogonalize

# B matrices in the batch · N shorter side · M longer side


class MatrixBatch:
    """All matrices with sides N <= M in one buffer, experts too; tall ones lie on their side."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """parameters: each [..., N, M] or [..., M, N]; the trailing two axes are one matrix."""
        first = next(iter(parameters.values()))
        short, long = sorted(first.shape[-2:])
        counts = {name: math.prod(p.shape[:-2]) for name, p in parameters.items()}
        shape = (sum(counts.values()), short, long)
        self.gradient_BNM = torch.zeros(shape, dtype=torch.float32, device=first.device)
        self.momentum_BNM = torch.zeros_like(self.gradient_BNM)
        self.gradient: dict[str, Tensor] = {}
        """Views shaped as the parameters; `to_direction` leaves the direction of the step here."""
        self.momentum: dict[str, Tensor] = {}
        start = 0
        for name, parameter in parameters.items():
            rows = slice(start, start + counts[name])
            self.gradient[name] = _view_as(self.gradient_BNM[rows], parameter)
            self.momentum[name] = _view_as(self.momentum_BNM[rows], parameter)
            start = rows.stop

    def to_direction(self, momentum: float, counts: Tensor, nesterov: bool, ns_steps: int) -> None:
        """Turn the gathered gradients, in place, into directions with entries of RMS about 0.2.

        counts: bool []. False: the gradients are 0, and the momentum stays as it is.
        """
        kept = torch.where(counts, momentum, 1.0)
        self.momentum_BNM.mul_(kept).add_(self.gradient_BNM)
        heading_BNM = self.momentum_BNM
        if nesterov:
            heading_BNM = self.gradient_BNM.add_(self.momentum_BNM, alpha=momentum)
        scale = 0.2 * math.sqrt(self.gradient_BNM.shape[-1])
        torch.mul(orthogonalize(heading_BNM, ns_steps), scale, out=self.gradient_BNM)


def batch_by_shape(parameters: Mapping[str, Tensor]) -> list[MatrixBatch]:
    """One batch for each pair of sides; [a, b] and [b, a] share one."""
    by_sides: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for name, parameter in parameters.items():
        by_sides.setdefault(tuple(sorted(parameter.shape[-2:])), {})[name] = parameter
    return [MatrixBatch(members) for members in by_sides.values()]


def _view_as(rows_BNM: Tensor, parameter: Tensor) -> Tensor:
    is_tall = parameter.shape[-2] > parameter.shape[-1]
    return (rows_BNM.mT if is_tall else rows_BNM).view(parameter.shape)
