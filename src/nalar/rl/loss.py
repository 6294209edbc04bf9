"""The clipped policy objective, per token."""

# N tokens

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """A differentiable share of the loss and, as sums over its tokens, what to watch."""

    loss: Tensor
    clipped: Tensor
    """Tokens whose ratio the clip held back."""
    squared_log_ratio: Tensor


def policy_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    denominator: float,
) -> PolicyLoss:
    """-sum(min(r A, clip(r) A)) / denominator, with r = exp(logprob - old).

    denominator: the tokens of the whole minibatch, whatever part of it this is, so that cutting a
    minibatch into micro-batches changes nothing.
    """
    log_ratio_N = logprobs_N - old_logprobs_N
    ratio_N = log_ratio_N.exp()
    unclipped_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N
    loss = -torch.minimum(unclipped_N, clipped_N).sum() / denominator
    with torch.no_grad():
        held = (clipped_N < unclipped_N).sum()
        return PolicyLoss(loss, held, log_ratio_N.square().sum())
