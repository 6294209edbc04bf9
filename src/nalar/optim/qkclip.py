"""QK-Clip: shrink query and key weights of heads whose logits pass a ceiling (arXiv:2507.20534)."""

from dataclasses import dataclass

import torch
from torch import Tensor

# H heads · N, P, W no-position, rotary and value rows of a head
# D input of the query projection · R latent, input of the key and value projection


@dataclass(frozen=True)
class HeadViews:
    """The weight rows of one attention layer that make its logits, as views by head.

    Two things stay out: the rotary key, which all heads share, and the values.
    """

    q_nope_HND: Tensor
    q_rope_HPD: Tensor
    k_nope_HNR: Tensor

    @classmethod
    def of(
        cls, q_weight: Tensor, kv_b_weight: Tensor, *, num_heads: int, nope_dim: int
    ) -> "HeadViews":
        """View two weights, or their masters, by head.

        q_weight: of q_b_proj, or of q_proj without query compression, [H * (N + P), D].
        kv_b_weight: [H * (N + W), R].
        """
        q = q_weight.detach().view(num_heads, -1, q_weight.shape[-1])
        kv = kv_b_weight.detach().view(num_heads, -1, kv_b_weight.shape[-1])
        return cls(q[:, :nope_dim], q[:, nope_dim:], kv[:, :nope_dim])


@torch.no_grad()
def clip_heads(
    views: HeadViews, max_logits_H: Tensor, tau: float, *, master: HeadViews | None = None
) -> Tensor:
    """Bring each head's largest logit down to `tau`, in place.

    A logit is q_nope k_nope + q_rope k_rope. The rotary key is shared and cannot move, so the whole
    factor falls on the rotary query; the other part splits it evenly.
    max_logits_H: largest pre-softmax logit of each head since the last step, softmax scale and all,
    over all micro-batches and ranks. One that is not finite is no ground to clip.
    master: the same views of the float32 masters; those are scaled, then rounded into `views`.
    Returns the factor [H] on each head's logits; 1 is untouched, to the bit.
    """
    logits_H = max_logits_H.float()
    is_over = torch.isfinite(logits_H) & (logits_H > tau)
    factor_H11 = torch.where(is_over, tau / logits_H, 1.0)[:, None, None]
    target = master or views
    half_H11 = factor_H11.sqrt()
    target.q_nope_HND.mul_(half_H11)
    target.k_nope_HNR.mul_(half_H11)
    target.q_rope_HPD.mul_(factor_H11)
    if master is not None:
        views.q_nope_HND.copy_(master.q_nope_HND)
        views.k_nope_HNR.copy_(master.k_nope_HNR)
        views.q_rope_HPD.copy_(master.q_rope_HPD)
    return factor_H11[:, 0, 0]
