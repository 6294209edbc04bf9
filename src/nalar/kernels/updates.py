"""What an optimizer does to one parameter on a GPU, in place, with one kernel or with torch's operations.

facts_4, fp32 on the device, says what only the device knows of a step: whether it counts (0: nothing is written), the
factor on gradients that clips them, and for AdamW the factor on the root of the second moment and the term beside it,
both with the corrections of bias.
"""

import torch
from torch import Tensor

from nalar.kernels import switch

NAME = "optimizer"


def facts_of(
    counts: Tensor,
    norm: Tensor,
    steps: Tensor,
    *,
    max_norm: float | None,
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """facts_4 of a step. counts: bool []; norm: of all gradients, fp32 []; steps: int64 [], this one included."""
    clip = torch.ones_like(norm) if max_norm is None else (max_norm / norm).clamp(max=1.0)
    step = steps.clamp(min=1).double()
    bias1, bias2 = 1 - betas[0] ** step, 1 - betas[1] ** step
    facts = (counts, clip, bias1 / bias2.sqrt(), eps * bias1)
    return torch.stack([fact.float() for fact in facts])


def adamw_(
    weight: Tensor,
    gradient: Tensor,
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    facts_4: Tensor,
    *,
    lr: float,
    decay: float,
    betas: tuple[float, float],
) -> None:
    """One step of AdamW (arXiv:1711.05101): moments, then the master, then the weight, which is it or rounds it."""
    if switch.runs(NAME, weight):
        from nalar.kernels.gpu.updates import adamw

        args = (weight, gradient.contiguous(), master, exp_avg, exp_avg_sq, facts_4)
        adamw(*args, lr=lr, decay=decay, betas=betas)
        return
    counts, clip, root, beside = facts_4.unbind()
    gradient = gradient.float() * clip
    m = exp_avg.lerp(gradient, 1 - betas[0])
    v = (exp_avg_sq * betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    w = master * (1 - lr * decay) - lr * m / (v.sqrt() * root + beside)
    for old, new in ((exp_avg, m), (exp_avg_sq, v), (master, w)):
        _put(old, new, counts)
    _round(weight, master)


def muon_heading_(
    gradient: Tensor,
    momentum_buffer: Tensor,
    heading: Tensor,
    facts_4: Tensor,
    *,
    momentum: float,
    nesterov: bool,
) -> None:
    """Momentum moves on; what is to be orthogonalised goes into `heading`, zeros where the step does not count."""
    if switch.runs(NAME, gradient):
        from nalar.kernels.gpu.updates import muon_heading

        muon_heading(
            *(gradient.contiguous(), momentum_buffer, heading, facts_4),
            momentum=momentum,
            nesterov=nesterov,
        )
        return
    counts, clip = facts_4[0], facts_4[1]
    gradient = gradient.float() * clip
    m = momentum_buffer * momentum + gradient
    ahead = gradient + m * momentum if nesterov else m
    heading.copy_(torch.where(counts != 0, ahead, 0.0))
    _put(momentum_buffer, m, counts)


def muon_apply_(
    weight: Tensor,
    master: Tensor,
    direction: Tensor,
    facts_4: Tensor,
    *,
    lr: float,
    decay: float,
    scale: float,
) -> None:
    """Decay, then `lr * scale` of the direction off the master, and the weight, which is it or rounds it."""
    if switch.runs(NAME, weight):
        from nalar.kernels.gpu.updates import muon_apply

        muon_apply(weight, master, direction, facts_4, lr=lr, decay=decay, scale=scale)
        return
    w = master * (1 - lr * decay) - lr * scale * direction.float()
    _put(master, w, facts_4[0])
    _round(weight, master)


def _put(old: Tensor, new: Tensor, counts: Tensor) -> None:
    """By choice and not by product: what does not count may not be finite."""
    old.copy_(torch.where(counts != 0, new, old))


def _round(weight: Tensor, master: Tensor) -> None:
    if weight.dtype != torch.float32:
        weight.copy_(master)
