"""Linear → log-softmax → gather in chunks, so that the logits of a long batch never exist at once."""

# T tokens · D hidden · V vocabulary

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.kernels.linear import product

KEPT_LOGPROBS = 2**24
"""A batch with no more of them (64 MiB) keeps them for the backward pass; a longer one computes them again."""


def token_logprobs_reference(
    states_TD: Tensor, head_VD: Tensor, targets_T: Tensor, *, logits_scaling: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The oracle of `token_logprobs`: the whole logits at once."""
    logits_TV = F.linear(states_TD.float(), head_VD.float()) / logits_scaling
    logprobs_TV = logits_TV.log_softmax(-1)
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1).detach()
    return logprobs_TV.gather(-1, targets_T[:, None]).squeeze(-1), entropy_T


def token_logprobs(
    states_TD: Tensor,
    head_VD: Tensor,
    targets_T: Tensor,
    *,
    logits_scaling: float = 1.0,
    chunk_tokens: int = 8192,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, both fp32 [T].

    states_TD: any float dtype; head_VD: the output head; targets_T: int64 ids in [0, V).
    logits_scaling: what states times head are divided by.
    The first result is differentiable in states and head; the entropy is a metric without gradient.
    At most chunk_tokens x V logits exist at a time; of a long batch the backward pass computes them again.
    entropy: False saves passes over the logits; the second result is then empty.
    """
    logprob_T, entropy_T = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        states_TD, head_VD, targets_T, logits_scaling, chunk_tokens, entropy
    )
    return logprob_T, entropy_T


def _chunk(states: Tensor, head: Tensor, scaling: float) -> Tensor:
    """Log-probabilities of all ids, fp32 [tokens, V]."""
    logits = product(states.float(), head)
    return (logits if scaling == 1 else logits.div_(scaling)).log_softmax(-1)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_TD: Tensor,
        head_VD: Tensor,
        targets_T: Tensor,
        scaling: float,
        chunk_tokens: int,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        logprob_T = torch.empty(len(targets_T), dtype=torch.float32, device=states_TD.device)
        entropy_T = logprob_T.new_empty(len(logprob_T) * entropy)
        head = head_VD.float()
        kept_TV = None
        for a in range(0, len(targets_T), chunk_tokens):
            span = slice(a, a + chunk_tokens)
            logprobs = _chunk(states_TD[span], head, scaling)
            logprob_T[span] = logprobs.gather(-1, targets_T[span, None]).squeeze(-1)
            if entropy:
                entropy_T[span] = -(logprobs.exp() * logprobs).sum(-1)
            if len(logprobs) == len(targets_T) and logprobs.numel() <= KEPT_LOGPROBS:
                kept_TV = logprobs
        ctx.save_for_backward(states_TD, head_VD, targets_T, kept_TV)
        ctx.scaling, ctx.chunk_tokens = scaling, chunk_tokens
        ctx.mark_non_differentiable(entropy_T)
        return logprob_T, entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        states_TD, head_VD, targets_T, kept_TV = ctx.saved_tensors
        grad_T = grads[0] / ctx.scaling
        head = head_VD.float()
        grad_states = torch.empty_like(states_TD)
        grad_head = torch.zeros_like(head)
        for a in range(0, len(targets_T), ctx.chunk_tokens):
            span = slice(a, a + ctx.chunk_tokens)
            states = states_TD[span].float()
            logprobs = _chunk(states, head, ctx.scaling) if kept_TV is None else kept_TV
            grad_logits = logprobs.exp().mul_(-grad_T[span, None])
            grad_logits.scatter_add_(-1, targets_T[span, None], grad_T[span, None])
            grad_states[span] = product(grad_logits, head.T)
            grad_head.addmm_(grad_logits.T, states)
        return grad_states, grad_head.to(head_VD.dtype), None, None, None, None
