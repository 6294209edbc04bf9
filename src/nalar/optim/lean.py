"""Updates for a GPU: gradients are read where autograd left them, and each number of the state once a step.

`muonclip.py` has the same arithmetic on buffers that hold all parameters end to end. That takes few operations, which
is what counts on a CPU; here bytes count, and a parameter is updated by a kernel of its own.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nalar.kernels.updates import adamw_, facts_of, muon_apply_, muon_heading_
from nalar.optim.config import OptimConfig
from nalar.optim.newton_schulz import orthogonalize_in_place

# B matrices of one shape · R rows · C columns


class LeanUpdate:
    """Holds moments and momentum, by parameter; the masters are the optimizer's."""

    def __init__(
        self,
        muon: Mapping[str, Tensor],
        adamw: Mapping[str, Tensor],
        masters: Mapping[str, Tensor],
        config: OptimConfig,
    ) -> None:
        self.config = config
        self._parameters, self._masters = dict(muon) | dict(adamw), masters
        self._momentum = {name: _zeros(p) for name, p in muon.items()}
        self._exp_avg = {name: _zeros(p) for name, p in adamw.items()}
        self._exp_avg_sq = {name: _zeros(p) for name, p in adamw.items()}
        by_shape: dict[tuple[int, ...], list[str]] = {}
        for name, parameter in muon.items():
            by_shape.setdefault(tuple(parameter.shape[-2:]), []).append(name)
        self._names_by_shape = list(by_shape.values())

    @torch.no_grad()
    def apply(
        self,
        gradients: Mapping[str, Tensor],
        *,
        norm: Tensor,
        counts: Tensor,
        steps: Tensor,
        lr_factor: float,
    ) -> None:
        """One update. norm: of all gradients, before clipping; counts, steps: [], as `MuonClip.step` has them."""
        c = self.config
        facts_4 = facts_of(
            *(counts, norm, steps),
            max_norm=c.clip_grad_norm,
            betas=c.adamw_betas,
            eps=c.adamw_eps,
        )
        for names in self._names_by_shape:
            self._apply_muon(names, gradients, facts_4, c.lr * lr_factor)
        for name, exp_avg in self._exp_avg.items():
            adamw_(
                *(self._parameters[name].data, gradients[name], self._masters[name].data),
                *(exp_avg, self._exp_avg_sq[name], facts_4),
                lr=c.adamw_lr * lr_factor,
                decay=c.weight_decay,
                betas=c.adamw_betas,
            )

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """By the names that `MuonClip` gives it in files."""
        yield from ((f"muon.momentum.{name}", x) for name, x in self._momentum.items())
        yield from ((f"adamw.exp_avg.{name}", x) for name, x in self._exp_avg.items())
        yield from ((f"adamw.exp_avg_sq.{name}", x) for name, x in self._exp_avg_sq.items())

    def _apply_muon(
        self, names: Sequence[str], gradients: Mapping[str, Tensor], facts_4: Tensor, lr: float
    ) -> None:
        """All matrices of one shape, in one batch of products; a tall one is turned by its strides alone."""
        first = self._parameters[names[0]]
        counts = [self._parameters[name].numel() // math.prod(first.shape[-2:]) for name in names]
        dtype = torch.float32 if first.device.type == "cpu" else torch.bfloat16
        heading_BRC = first.new_empty(sum(counts), *first.shape[-2:], dtype=dtype)
        for name, part in zip(names, heading_BRC.split(counts), strict=True):
            muon_heading_(
                *(gradients[name], self._momentum[name], self._as(name, part), facts_4),
                momentum=self.config.momentum,
                nesterov=self.config.nesterov,
            )
        is_tall = first.shape[-2] > first.shape[-1]
        wide = heading_BRC.mT if is_tall else heading_BRC
        direction = orthogonalize_in_place(wide, self.config.ns_steps)
        direction_BRC = direction.mT if is_tall else direction
        for name, part in zip(names, direction_BRC.split(counts), strict=True):
            muon_apply_(
                *(self._parameters[name].data, self._masters[name].data),
                *(self._as(name, part), facts_4),
                lr=lr,
                decay=self.config.weight_decay,
                scale=0.2 * math.sqrt(max(first.shape[-2:])),
            )

    def _as(self, name: str, matrices: Tensor) -> Tensor:
        return matrices.view(self._parameters[name].shape)


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
