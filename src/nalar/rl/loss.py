"""The loss, token by token: objectives, the divergence from a reference, and how much each token counts."""

# N drawn tokens · M responses

from dataclasses import dataclass

import torch
from torch import Tensor

from nalar.rl.config import ObjectiveConfig


@dataclass(frozen=True)
class Objective:
    """What to minimise for each token, and which tokens the clip held back."""

    loss_N: Tensor
    too_high_N: Tensor
    """bool: no gradient (clip, gspo) or one of a smaller weight (cispo), because the ratio is above its bound."""
    too_low_N: Tensor


def objective(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    config: ObjectiveConfig,
    lengths_M: Tensor,
) -> Objective:
    """The policy's part of the loss.

    lengths_M: int64, the drawn tokens of each response, which stand one after another. Of `gspo` every token of a
    response carries the loss of the response.
    """
    log_ratio_N = logprobs_N - old_logprobs_N
    if config.name == "gspo":
        # The response's ratio, and of its gradient each token's own share: together they are the gradient of the
        # mean (the paper's equation 17), and nothing is added up by atomics, in an order of its own.
        whole_N = over_responses(log_ratio_N.detach(), lengths_M, mean=True)
        log_ratio_N = whole_N + (logprobs_N - logprobs_N.detach())
    ratio_N = log_ratio_N.exp()
    low = None if config.clip_low is None else 1 - config.clip_low
    high = None if config.clip_high is None else 1 + config.clip_high
    held_N = ratio_N if low is None and high is None else ratio_N.clamp(low, high)
    if config.name == "cispo":
        loss_N = -held_N.detach() * advantages_N * logprobs_N
        return Objective(loss_N, held_N < ratio_N, held_N > ratio_N)
    unclipped_N, clipped_N = ratio_N * advantages_N, held_N * advantages_N
    gained_N = torch.minimum(unclipped_N, clipped_N)
    is_held_N = clipped_N < unclipped_N
    too_high_N, too_low_N = is_held_N & (advantages_N > 0), is_held_N & (advantages_N < 0)
    if config.dual_clip is not None:
        floor_N = torch.where(advantages_N < 0, config.dual_clip * advantages_N, -torch.inf)
        too_high_N = too_high_N | (gained_N < floor_N)
        gained_N = torch.maximum(gained_N, floor_N)
    return Objective(-gained_N, too_high_N, too_low_N)


def over_responses(x_N: Tensor, lengths_M: Tensor, *, mean: bool) -> Tensor:
    """Each response's mean or sum, at each of its tokens, [N]. No gradient goes through."""
    sums_M = torch.segment_reduce(x_N.detach(), "sum", lengths=lengths_M, initial=0.0, unsafe=True)
    found_M = sums_M / lengths_M.clamp(min=1) if mean else sums_M
    return found_M.repeat_interleave(lengths_M, output_size=len(x_N))


def divergence(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """k3 of each drawn token: exp(d) - d - 1 with d = reference - policy. Never negative, and over tokens that the
    policy drew its mean is the divergence of the policy from the reference (arXiv:2402.03300, equation 4)."""
    d_N = reference_N - logprobs_N
    return d_N.exp() - d_N - 1


def shares(counted_N: Tensor, lengths_M: Tensor, config: ObjectiveConfig) -> Tensor:
    """How much each token counts, before the division by the denominator of the whole minibatch; fp32 [N].

    counted_N: fp32, 0 for a token that is left out of the loss, else 1.
    """
    if config.aggregation != "sequence_mean":
        return counted_N
    return counted_N / over_responses(counted_N, lengths_M, mean=False).clamp(min=1)
