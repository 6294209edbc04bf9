"""QK-Clip: shrink query and key weights of heads whose logits pass a ceiling (arXiv:2507.20534)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# H heads · G groups of heads, each with keys of its own · D what a projection takes in
# N, P, W widths of a latent head without rotation, with it, of values · R latent · K width of a grouped head


@dataclass(frozen=True)
class HeadViews:
    """What makes the logits of one attention layer, as views [G, rows, ...] by group of heads.

    A logit is a product of queries and keys, so where both can move each takes the root of a factor.
    """

    take_root: tuple[Tensor, ...]
    take_whole: tuple[Tensor, ...] = ()
    """Queries of keys that cannot move."""

    @classmethod
    def latent(cls, weights: Sequence[Tensor], *, num_heads: int, nope_dim: int) -> "HeadViews":
        """Latent attention: a group is one head. The rotary key is shared by all, so it stays, as do the values.

        weights, or their masters: of q_b_proj, or of q_proj without query compression,
        [H * (N + P), D], and of kv_b_proj [H * (N + W), R].
        """
        q, kv = (w.detach().view(num_heads, -1, w.shape[-1]) for w in weights)
        return cls((q[:, :nope_dim], kv[:, :nope_dim]), (q[:, nope_dim:],))

    @classmethod
    def grouped(cls, weights: Sequence[Tensor], *, num_kv_heads: int) -> "HeadViews":
        """Grouped-query attention without norms of queries and keys: a group is the heads over one key.

        weights, or their masters: of q_proj [H * K, D] and k_proj [G * K, D], then their biases, if any.
        """
        return cls(tuple(w.detach().view(num_kv_heads, -1, *w.shape[1:]) for w in weights))


@torch.no_grad()
def clip_heads(
    views: HeadViews, max_logits_H: Tensor, tau: float, *, master: HeadViews | None = None
) -> Tensor:
    """Bring the largest logit of each group of heads down to `tau`, in place.

    max_logits_H: largest pre-softmax logit of each head since the last step, softmax scale and all,
    over all micro-batches and ranks. One that is not finite is no ground to clip.
    master: the same views of the float32 masters; those are scaled, then rounded into `views`.
    Returns the factor [G] on each group's logits; 1 is untouched, to the bit.
    """
    logits_H = max_logits_H.float()
    finite_H = torch.where(torch.isfinite(logits_H), logits_H, -torch.inf)
    logits_G = finite_H.view(len(views.take_root[0]), -1).amax(-1)
    factor_G = torch.where(logits_G > tau, tau / logits_G, 1.0)
    target = master or views
    for view in target.take_root:
        view.mul_(_beside(factor_G.sqrt(), view))
    for view in target.take_whole:
        view.mul_(_beside(factor_G, view))
    if master is not None:
        for rounded, exact in zip(views.take_root, master.take_root, strict=True):
            rounded.copy_(exact)
        for rounded, exact in zip(views.take_whole, master.take_whole, strict=True):
            rounded.copy_(exact)
    return factor_G


def _beside(factor_G: Tensor, view: Tensor) -> Tensor:
    return factor_G.view(-1, *[1] * (view.ndim - 1))
