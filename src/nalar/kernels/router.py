"""Logits of a router in float32 and the best of its experts: torch's operations, and on a GPU what is quicker there."""

# T tokens · D hidden · E experts · K experts per token · G groups of M experts each

from typing import Any

import torch
from torch import Tensor

from nalar.kernels import switch
from nalar.kernels.linear import linear, wide_product
from nalar.kernels.opaque import opaque


def router_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """x times the transposed weight in float32, [T, E].

    A product of bfloat16 numbers is exact in float32, so on a GPU nothing is cast before: sums alone differ, in order.
    """
    if x_TD.is_cuda and x_TD.dtype == weight_ED.dtype == torch.bfloat16:
        out_TE: Tensor = BFloat16Logits.apply(x_TD, weight_ED)  # type: ignore[no-untyped-call]
        return out_TE
    return linear(x_TD.float(), weight_ED.float())


class BFloat16Logits(torch.autograd.Function):
    """The gradient is cut into two bfloat16 halves, 16 bits in all: products are exact again and sums in float32."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, weight_ED)
        return wide_product(x_TD, weight_ED.T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x_TD, weight_ED = ctx.saved_tensors
        high_TE = grads[0].to(x_TD.dtype)
        halves = torch.cat([high_TE, (grads[0] - high_TE).to(x_TD.dtype)], 1)
        grad_x = wide_product(halves, torch.cat([weight_ED, weight_ED])).to(x_TD.dtype)
        grad_weight = wide_product(halves.T, x_TD).unflatten(0, (2, -1)).sum(0)
        return grad_x, grad_weight.to(weight_ED.dtype)


def best_experts(merits_TE: Tensor, k: int, groups: int, groups_kept: int) -> Tensor:
    """The k experts of most merit of each token, int64 [T, K], out of its best groups.

    A group is as good as its two best experts together. On a GPU, of equal merits the lower number is chosen.
    """
    if merits_TE.is_cuda or switch.is_forced("router"):
        return _best_experts(merits_TE, k, groups, groups_kept)
    return _sorted_out(merits_TE, k, groups, groups_kept)


def _best_experts_shape(merits_TE: Tensor, k: int, groups: int, groups_kept: int) -> Tensor:
    return merits_TE.new_empty(merits_TE.shape[0], k, dtype=torch.int64)


@opaque(_best_experts_shape)
def _best_experts(merits_TE: Tensor, k: int, groups: int, groups_kept: int) -> Tensor:
    if switch.runs("router", merits_TE):
        from nalar.kernels.gpu import router

        if merits_TE.shape[1] <= router.MOST_EXPERTS:
            return router.best(merits_TE, k, groups, groups_kept)
        switch.refuse("router", f"{merits_TE.shape[1]} experts")
    return _sorted_out(merits_TE, k, groups, groups_kept)


def _sorted_out(merits_TE: Tensor, k: int, groups: int, groups_kept: int) -> Tensor:
    if groups > 1:
        merits_TE = of_best_groups(merits_TE, groups, groups_kept)
    return merits_TE.topk(k, dim=-1).indices


def of_best_groups(merits_TE: Tensor, groups: int, groups_kept: int) -> Tensor:
    """Merits [T, E], -inf for those of groups that are not chosen."""
    merits_TGM = merits_TE.unflatten(-1, (groups, -1))
    group_TG = merits_TGM.topk(2, dim=-1).values.sum(-1)
    chosen = group_TG.topk(groups_kept, dim=-1).indices
    is_out_TG = torch.ones_like(group_TG, dtype=torch.bool).scatter_(-1, chosen, False)
    # Not 0: a biased score can be below it, and an expert of another group would be chosen.
    kept_TGM: Tensor = merits_TGM.masked_fill(is_out_TG[..., None], -torch.inf)
    return kept_TGM.flatten(-2)
