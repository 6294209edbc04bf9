"""Softmax over rows of logits, in one launch: log-probability of a target, log-sum-exp, entropy, gradient.

The running maximum and sum are those of online softmax (arXiv:1805.02867), kept by each lane of a block for itself and
joined at the end of the row. A row of logits is read once for its numbers, and once more, out of the level-2 cache,
where its gradient is written in the same launch.
"""

# T rows · V vocabulary

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 4096, 8
"""Logits taken at a time, and who takes them. Not measured yet."""


@triton.jit
def _rows_kernel(
    logits_ptr,
    targets_ptr,
    weights_ptr,
    logprob_ptr,
    lse_ptr,
    entropy_ptr,
    grad_ptr,
    V,
    factor,
    STATS: tl.constexpr,
    ENTROPY: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    row_ptr = logits_ptr + row * V
    target = tl.load(targets_ptr + row)
    if STATS:
        best = tl.full((BLOCK,), -1e30, tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        mixed = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, V, BLOCK):
            x = tl.load(row_ptr + start + at, mask=start + at < V, other=-float("inf")) * factor
            higher = tl.maximum(best, x)
            kept = tl.exp(best - higher)
            e = tl.exp(x - higher)
            total = total * kept + e
            if ENTROPY:  # a lane past the end has weight 0, and 0 times its -inf would be nan
                mixed = mixed * kept + tl.where(start + at < V, e * x, 0.0)
            best = higher
        highest = tl.max(best, 0)
        kept = tl.exp(best - highest)
        sums = tl.sum(total * kept, 0)
        lse = highest + tl.log(sums)
        tl.store(lse_ptr + row, lse)
        tl.store(logprob_ptr + row, tl.load(row_ptr + target) * factor - lse)
        if ENTROPY:
            tl.store(entropy_ptr + row, lse - tl.sum(mixed * kept, 0) / sums)
    else:
        lse = tl.load(lse_ptr + row)
    if GRAD:
        weight = tl.load(weights_ptr + row) * factor
        for start in range(0, V, BLOCK):
            inside = start + at < V
            x = tl.load(row_ptr + start + at, mask=inside, other=0.0) * factor
            grad = (tl.where(start + at == target, 1.0, 0.0) - tl.exp(x - lse)) * weight
            grad = grad.to(grad_ptr.dtype.element_ty)
            tl.store(grad_ptr + row * V + start + at, grad, mask=inside)


def rows(
    logits_TV: Tensor,
    targets_T: Tensor,
    scaling: float,
    *,
    entropy: bool = False,
    weights_T: Tensor | None = None,
    grad_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Log-probability of the target, log-sum-exp and entropy, fp32 [T] (entropy [0] where it is not asked for).

    logits_TV: fp32, contiguous; divided by `scaling` on the way. targets_T: int64, contiguous, in [0, V).
    weights_T: fp32, contiguous: where given, the fourth result is the gradient [T, V] of the sum of weights times
    log-probabilities in the logits, in `grad_dtype`.
    """
    T = len(targets_T)
    stats = logits_TV.new_empty(2, T)
    entropy_T = logits_TV.new_empty(T * entropy)
    grad_TV = None if weights_T is None else torch.empty_like(logits_TV, dtype=grad_dtype)
    _launch(
        *(logits_TV, targets_T, weights_T, stats[0], stats[1], entropy_T, grad_TV),
        scaling=scaling,
        with_stats=True,
    )
    return stats[0], stats[1], entropy_T, grad_TV


def gradient(
    logits_TV: Tensor,
    targets_T: Tensor,
    weights_T: Tensor,
    lse_T: Tensor,
    scaling: float,
    dtype: torch.dtype,
) -> Tensor:
    """The fourth result of `rows`, from the log-sum-exps that it gave."""
    grad_TV = torch.empty_like(logits_TV, dtype=dtype)
    _launch(
        *(logits_TV, targets_T, weights_T, None, lse_T, None, grad_TV),
        scaling=scaling,
        with_stats=False,
    )
    return grad_TV


def _launch(
    logits_TV: Tensor,
    targets_T: Tensor,
    weights_T: Tensor | None,
    logprob_T: Tensor | None,
    lse_T: Tensor,
    entropy_T: Tensor | None,
    grad_TV: Tensor | None,
    *,
    scaling: float,
    with_stats: bool,
) -> None:
    T, V = logits_TV.shape
    for x in (logits_TV, targets_T, weights_T):
        assert x is None or x.is_contiguous(), "rows one after another"
    if T == 0:
        return
    # What is not wanted still needs a pointer: one that nothing is done with.
    unused = lse_T
    _rows_kernel[(T,)](
        logits_TV,
        targets_T,
        unused if weights_T is None else weights_T,
        unused if logprob_T is None else logprob_T,
        lse_T,
        unused if entropy_T is None else entropy_T,
        unused if grad_TV is None else grad_TV,
        V,
        1.0 / scaling,
        STATS=with_stats,
        ENTROPY=entropy_T is not None and len(entropy_T) > 0,
        GRAD=grad_TV is not None,
        BLOCK=min(BLOCK, triton.next_power_of_2(V)),
        num_warps=WARPS,
    )
