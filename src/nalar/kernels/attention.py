"""Causal attention over expanded heads (training, prefill) and over a cache of latents (decode)."""

# N tokens of a flat batch · B batch · T tokens · H heads · K query/key width · W value width
# R latent · C latent + rope width

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.kernels.documents import Documents

Observe = Literal["nothing", "bound", "exact"]
"""What to learn of the largest pre-softmax logits: a bound costs nothing where attention gives its log-sum-exp."""


def document_attention(
    q_NHK: Tensor,
    k_NHK: Tensor,
    v_NHW: Tensor,
    documents: Documents,
    *,
    scale: float,
    observe: Observe = "nothing",
) -> tuple[Tensor, Tensor | None]:
    """Causal attention within each document: [N, H, W], and the largest logits fp32 [H] when observed."""
    outs, seen = [], []
    spread = [documents.spread(x) for x in (q_NHK, k_NHK, v_NHW)]
    for q_BTHK, k_BTHK, v_BTHW in zip(*spread, strict=True):
        out_BHTW, observed_H = causal_attention(
            q_BTHK.transpose(1, 2),
            k_BTHK.transpose(1, 2),
            v_BTHW.transpose(1, 2),
            scale=scale,
            observe=observe,
        )
        outs.append(out_BHTW.transpose(1, 2))
        if observed_H is not None:
            seen.append(observed_H)
    return documents.join(outs), torch.stack(seen).amax(0) if seen else None


def causal_attention(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTW: Tensor, *, scale: float, observe: Observe = "nothing"
) -> tuple[Tensor, Tensor | None]:
    """Softmax(q k^T * scale) v with a causal mask: [B, H, T, W], and fp32 [H] when observed.

    The bound is the largest log-sum-exp of a row per head, over batch and rows: never below the
    largest pre-softmax logit and at most log(T) above it.
    """
    exact_H = max_logit(q_BHTK, k_BHTK, scale=scale) if observe == "exact" else None
    if q_BHTK.device.type == "cpu" and q_BHTK.shape[-1] == v_BHTW.shape[-1]:
        # what scaled_dot_product_attention calls on a CPU, by name for its second output
        out, lse_BHT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_BHTK, k_BHTK, v_BHTW, 0.0, True, scale=scale
        )
        return out, lse_BHT.detach().amax((0, 2)).float() if observe == "bound" else exact_H
    out = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTW, is_causal=True, scale=scale)
    return out, max_logit(q_BHTK, k_BHTK, scale=scale) if observe == "bound" else exact_H


@torch.no_grad()
def max_logit(q_BHTK: Tensor, k_BHTK: Tensor, *, scale: float, chunk: int = 512) -> Tensor:
    """The largest causal pre-softmax logit of each head, fp32 [H], a block of query rows at a time."""
    T = q_BHTK.shape[2]
    best = q_BHTK.new_full((q_BHTK.shape[1],), -torch.inf, dtype=torch.float32)
    for a in range(0, T, chunk):
        q = q_BHTK[:, :, a : a + chunk]
        keys = min(T, a + chunk)
        logits = (q @ k_BHTK[:, :, :keys].transpose(-1, -2)).float() * scale
        hidden = torch.ones(q.shape[2], keys, dtype=torch.bool, device=q.device).triu(a + 1)
        best = torch.maximum(best, logits.masked_fill_(hidden, -torch.inf).amax((0, 2, 3)))
    return best


def latent_attention(
    q_BHC: Tensor, cache_BTC: Tensor, hidden_BT: Tensor, *, latent_dim: int, scale: float
) -> Tensor:
    """One query per row against cached latents: [B, H, R], the attention-weighted latent.

    cache_BTC: per token the normed latent (first latent_dim columns), then the rotated key.
    hidden_BT: -inf where a key is not visible, else 0 (additive).
    """
    scores_BHT = torch.baddbmm(
        hidden_BT[:, None], q_BHC, cache_BTC.transpose(1, 2), beta=1.0, alpha=scale
    )
    return torch.bmm(scores_BHT.softmax(-1), cache_BTC[..., :latent_dim])
