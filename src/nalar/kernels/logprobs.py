"""Linear → log-softmax → gather in chunks, so that the logits of a long batch never exist at once."""

# T tokens · D hidden · V vocabulary

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.kernels import switch
from nalar.kernels.linear import product, wide_product

KEPT_LOGPROBS = 2**24
"""A batch with no more of them (64 MiB) keeps them for the backward pass; a longer one computes them again."""

CHUNK_LOGITS = 2**28
"""Of rounded states on a GPU, at most 1 GiB of logits at a time, of fewer tokens where the vocabulary is large."""


def token_logprobs_reference(
    states_TD: Tensor, head_VD: Tensor, targets_T: Tensor, *, logits_scaling: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The oracle of `token_logprobs`: the whole logits at once, and autograd through both results."""
    logits_TV = F.linear(states_TD.float(), head_VD.float()) / logits_scaling
    logprobs_TV = logits_TV.log_softmax(-1)
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    return logprobs_TV.gather(-1, targets_T[:, None]).squeeze(-1), entropy_T


def token_logprobs(
    states_TD: Tensor,
    head_VD: Tensor,
    targets_T: Tensor,
    *,
    logits_scaling: float = 1.0,
    chunk_tokens: int = 8192,
    entropy: bool = True,
    entropy_learns: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, both fp32 [T].

    states_TD: any float dtype; head_VD: the output head; targets_T: int64 ids in [0, V).
    logits_scaling: what states times head are divided by.
    The first result is differentiable in states and head; the entropy is a metric without gradient, unless
    entropy_learns, which costs the backward pass a few more passes over the logits.
    At most chunk_tokens x V logits exist at a time; of a long batch the backward pass computes them again.
    entropy: False saves passes over the logits; the second result is then empty.
    bfloat16 on a GPU is multiplied as it is into fp32 logits, whose gradient is rounded before it is multiplied; all
    else is multiplied in fp32.
    """
    by_chunks = _RoundedLogprobs if is_rounded(states_TD, head_VD) else _TokenLogprobs
    logprob_T, entropy_T = by_chunks.apply(  # type: ignore[no-untyped-call]
        states_TD, head_VD, targets_T, logits_scaling, chunk_tokens, entropy, entropy_learns
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
        entropy_learns: bool,
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
        _keep(ctx, (states_TD, head_VD, targets_T, kept_TV), entropy_T, entropy_learns)
        ctx.scaling, ctx.chunk_tokens = scaling, chunk_tokens
        return logprob_T, entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states_TD, head_VD, targets_T, kept_TV, entropy_T = ctx.saved_tensors
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
            if entropy_T is not None:
                grad_logits += (
                    _entropy_gradient(logprobs, entropy_T[span], grads[1][span]) / ctx.scaling
                )
            grad_states[span] = product(grad_logits, head.T)
            grad_head.addmm_(grad_logits.T, states)
        return grad_states, grad_head.to(head_VD.dtype), None, None, None, None, None


def _keep(
    ctx: Any, tensors: tuple[Tensor | None, ...], entropy_T: Tensor, entropy_learns: bool
) -> None:
    """For the backward pass; the entropies are among it where they have a gradient."""
    ctx.save_for_backward(*tensors, entropy_T if entropy_learns else None)
    if not entropy_learns:
        ctx.mark_non_differentiable(entropy_T)


def _entropy_gradient(logprobs_TV: Tensor, entropy_T: Tensor, grad_T: Tensor) -> Tensor:
    """Of the entropies in the scaled logits: -p (log p + H)."""
    return logprobs_TV.exp() * (logprobs_TV + entropy_T[:, None]) * -grad_T[:, None]


def logprob_sum(
    states_TD: Tensor,
    head_VD: Tensor,
    targets_T: Tensor,
    weights_T: Tensor,
    *,
    logits_scaling: float = 1.0,
    chunk_tokens: int = 8192,
) -> Tensor:
    """Sum over tokens of weight times log-probability of the target, fp32 []: the losses of training but for a sign.

    weights_T: fp32, no gradient goes there. Differentiable in states and head, as `token_logprobs` is; bfloat16 on a
    GPU finds its gradient while it has the logits, so that they are computed once.
    """
    if is_rounded(states_TD, head_VD):
        total: Tensor = _LogprobSum.apply(  # type: ignore[no-untyped-call]
            states_TD, head_VD, targets_T, weights_T, logits_scaling, chunk_tokens
        )
        return total
    logprob_T, _ = token_logprobs(
        states_TD,
        head_VD,
        targets_T,
        logits_scaling=logits_scaling,
        chunk_tokens=chunk_tokens,
        entropy=False,
    )
    return (weights_T * logprob_T).sum()


def is_rounded(states_TD: Tensor, head_VD: Tensor) -> bool:
    """Whether operands are bfloat16 on a device that multiplies them into fp32."""
    return states_TD.is_cuda and states_TD.dtype == head_VD.dtype == torch.bfloat16


def _spans(tokens: int, vocab_size: int, chunk_tokens: int) -> list[slice]:
    most = max(CHUNK_LOGITS // vocab_size, 1)
    most -= most % 128 if most > 128 else 0
    size = min(chunk_tokens, most)
    return [slice(a, a + size) for a in range(0, tokens, size)]


def _rows(
    logits_TV: Tensor,
    targets_T: Tensor,
    scaling: float,
    *,
    entropy: bool = False,
    weights_T: Tensor | None = None,
    grad_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As `kernels.gpu.logprobs.rows`, which it calls where it runs."""
    if switch.runs("token_logprobs", logits_TV):
        from nalar.kernels.gpu.logprobs import rows

        return rows(
            *(logits_TV, targets_T.contiguous(), scaling),
            entropy=entropy,
            weights_T=None if weights_T is None else weights_T.contiguous(),
            grad_dtype=grad_dtype,
        )
    logits_TV = logits_TV / scaling
    lse_T = logits_TV.logsumexp(-1)
    logprob_T = logits_TV.gather(-1, targets_T[:, None]).squeeze(-1) - lse_T
    entropy_T = logits_TV.new_empty(0)
    if entropy:
        weights_TV = (logits_TV - lse_T[:, None]).exp_()
        entropy_T = lse_T - (weights_TV * logits_TV).sum(-1)
    grad_TV = None
    if weights_T is not None:
        grad_TV = _plain_gradient(logits_TV, targets_T, weights_T / scaling, lse_T).to(grad_dtype)
    return logprob_T, lse_T, entropy_T, grad_TV


def _gradient(
    logits_TV: Tensor,
    targets_T: Tensor,
    weights_T: Tensor,
    lse_T: Tensor,
    scaling: float,
    dtype: torch.dtype,
) -> Tensor:
    """As `kernels.gpu.logprobs.gradient`, which it calls where it runs."""
    if switch.runs("token_logprobs", logits_TV):
        from nalar.kernels.gpu.logprobs import gradient

        args = (logits_TV, targets_T.contiguous(), weights_T.contiguous(), lse_T)
        return gradient(*args, scaling, dtype)
    return _plain_gradient(logits_TV / scaling, targets_T, weights_T / scaling, lse_T).to(dtype)


def _plain_gradient(x_TV: Tensor, targets_T: Tensor, weights_T: Tensor, lse_T: Tensor) -> Tensor:
    grad_TV = (x_TV - lse_T[:, None]).exp_().mul_(-weights_T[:, None])
    return grad_TV.scatter_add_(-1, targets_T[:, None], weights_T[:, None])


def _multiplied(
    grad_TV: Tensor, states_TD: Tensor, head_VD: Tensor, grad_head: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What a chunk's gradient of logits makes of states, and of the head on top of the chunks before, fp32."""
    share = wide_product(grad_TV.T, states_TD)
    return grad_TV @ head_VD, share if grad_head is None else grad_head.add_(share)


class _RoundedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_TD: Tensor,
        head_VD: Tensor,
        targets_T: Tensor,
        scaling: float,
        chunk_tokens: int,
        entropy: bool,
        entropy_learns: bool,
    ) -> tuple[Tensor, Tensor]:
        spans = _spans(len(targets_T), len(head_VD), chunk_tokens)
        logprob_T = torch.empty(len(targets_T), dtype=torch.float32, device=states_TD.device)
        lse_T, entropy_T = (
            torch.empty_like(logprob_T),
            logprob_T.new_empty(len(targets_T) * entropy),
        )
        for span in spans:
            found = _rows(
                wide_product(states_TD[span], head_VD.T), targets_T[span], scaling, entropy=entropy
            )
            logprob_T[span], lse_T[span] = found[:2]
            if entropy:
                entropy_T[span] = found[2]
        _keep(ctx, (states_TD, head_VD, targets_T, lse_T), entropy_T, entropy_learns)
        ctx.scaling, ctx.spans = scaling, spans
        return logprob_T, entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states_TD, head_VD, targets_T, lse_T, entropy_T = ctx.saved_tensors
        grad_states, grad_head = torch.empty_like(states_TD), None
        for span in ctx.spans:
            states = states_TD[span]
            logits = wide_product(states, head_VD.T)
            grad_TV = _gradient(
                *(logits, targets_T[span], grads[0][span], lse_T[span], ctx.scaling),
                head_VD.dtype,
            )
            if entropy_T is not None:
                logprobs = logits.div_(ctx.scaling).sub_(lse_T[span, None])
                more = _entropy_gradient(logprobs, entropy_T[span], grads[1][span])
                grad_TV = grad_TV + more.div_(ctx.scaling).to(grad_TV.dtype)
                del logprobs, more
            del logits
            grad_states[span], grad_head = _multiplied(grad_TV, states, head_VD, grad_head)
        if grad_head is None:
            grad_head = torch.zeros_like(head_VD)
        return grad_states, grad_head.to(head_VD.dtype), None, None, None, None, None


class _LogprobSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_TD: Tensor,
        head_VD: Tensor,
        targets_T: Tensor,
        weights_T: Tensor,
        scaling: float,
        chunk_tokens: int,
    ) -> Tensor:
        learns = any(ctx.needs_input_grad[:2])
        grad_states, grad_head = torch.empty_like(states_TD) if learns else None, None
        total = torch.zeros((), dtype=torch.float32, device=states_TD.device)
        for span in _spans(len(targets_T), len(head_VD), chunk_tokens):
            states, weights = states_TD[span], weights_T[span]
            logits = wide_product(states, head_VD.T)
            logprob, _, _, grad_TV = _rows(
                *(logits, targets_T[span], scaling),
                weights_T=weights if learns else None,
                grad_dtype=head_VD.dtype,
            )
            del logits
            total += (weights * logprob).sum()
            if grad_states is not None and grad_TV is not None:
                grad_states[span], grad_head = _multiplied(grad_TV, states, head_VD, grad_head)
        if learns:
            rounded = torch.zeros_like(head_VD) if grad_head is None else grad_head
            ctx.save_for_backward(grad_states, rounded.to(head_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_head = ctx.saved_tensors
        return grad_states * grads[0], grad_head * grads[0], None, None, None, None
