"""Rotary positions (arXiv:2104.09864): the turn itself, and what tokens leave in a cache of blocks after it."""

# N tokens · H heads · G heads of keys and values · K width of a head · R latent · P rotary width
# P blocks of a cache, of S slots · C what a token has in it

import torch
from torch import Tensor

from nalar.kernels import switch
from nalar.kernels.norm import rms_norm
from nalar.kernels.paging import write


def rotate(x: Tensor, turn: Tensor, *, interleave: bool = True) -> Tensor:
    """Turn pairs of the last dimension: neighbours (DeepSeek's weights), or i with i + P/2 (all others').

    x: [..., P]; turn: complex [..., P/2], broadcastable; or real [..., P], all cosines before all sines, which
    torch.compile understands.
    """
    if not turn.is_complex():
        return _rotate_reals(x, *turn.chunk(2, dim=-1), interleave=interleave)
    if interleave:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
    pairs = torch.complex(*x.float().chunk(2, dim=-1)) * turn
    return torch.cat([pairs.real, pairs.imag], dim=-1).to(x.dtype)


def _rotate_reals(x: Tensor, cos: Tensor, sin: Tensor, *, interleave: bool) -> Tensor:
    wide = x.float()
    a, b = wide.unflatten(-1, (-1, 2)).unbind(-1) if interleave else wide.chunk(2, dim=-1)
    turned = (a * cos - b * sin, a * sin + b * cos)
    both = torch.stack(turned, dim=-1).flatten(-2) if interleave else torch.cat(turned, dim=-1)
    return both.to(x.dtype)


def latent_entries(
    q_NHP: Tensor,
    kv_NC: Tensor,
    turn_NP: Tensor,
    weight_R: Tensor,
    slots_N: Tensor,
    cache_PSC: Tensor,
    *,
    eps: float,
    interleave: bool,
    num_kept: int,
) -> tuple[Tensor, Tensor]:
    """Writes tokens' entries: the latent, normed, and the key, rotated. Gives the rotated queries [N, H, P] and the
    first num_kept entries [num_kept, C].

    kv_NC: latent and key before that; turn_NP: complex [N, P/2]. The kernel is for inference alone.
    """
    if _use_kernel(cache_PSC, max(len(weight_R), q_NHP.shape[-1])):
        from nalar.kernels.gpu import rotary

        return rotary.latent_entries(
            q_NHP,
            kv_NC,
            turn_NP,
            weight_R,
            slots_N,
            cache_PSC,
            eps=eps,
            interleave=interleave,
            num_kept=num_kept,
        )
    q_NHP = rotate(q_NHP, turn_NP[:, None], interleave=interleave)
    latent_NR, key_NP = kv_NC.split([len(weight_R), q_NHP.shape[-1]], dim=-1)
    key_NP = rotate(key_NP, turn_NP, interleave=interleave)
    entries_NC = torch.cat([rms_norm(latent_NR, weight_R, eps), key_NP], -1)
    write(cache_PSC, slots_N, entries_NC)
    return q_NHP, entries_NC[:num_kept]


def grouped_entries(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    turn_NK: Tensor,
    weights: tuple[Tensor, Tensor] | None,
    slots_N: Tensor,
    cache_PSC: Tensor,
    *,
    eps: float,
    interleave: bool,
    num_kept: int,
) -> tuple[Tensor, Tensor]:
    """Writes tokens' entries: keys [G, K], normed and rotated, then values [G, K]. Gives the queries [N, H, K],
    normed and rotated, and the first num_kept entries [num_kept, C].

    turn_NK: complex [N, K/2]; weights: [K] of the norms of queries and keys, if there are any. The kernel is for
    inference alone.
    """
    if _use_kernel(cache_PSC, q_NHK.shape[-1]):
        from nalar.kernels.gpu import rotary

        return rotary.grouped_entries(
            q_NHK,
            k_NGK,
            v_NGK,
            turn_NK,
            weights,
            slots_N,
            cache_PSC,
            eps=eps,
            interleave=interleave,
            num_kept=num_kept,
        )
    if weights is not None:
        q_NHK, k_NGK = (rms_norm(x, w, eps) for x, w in zip((q_NHK, k_NGK), weights, strict=True))
    q_NHK, k_NGK = (rotate(x, turn_NK[:, None], interleave=interleave) for x in (q_NHK, k_NGK))
    entries_NC = torch.cat([k_NGK.flatten(1), v_NGK.flatten(1)], -1)
    write(cache_PSC, slots_N, entries_NC)
    return q_NHK, entries_NC[:num_kept]


def _use_kernel(cache_PSC: Tensor, width: int) -> bool:
    if torch.is_grad_enabled() or not switch.runs("rotary", cache_PSC):
        return False
    from nalar.kernels.gpu import rotary

    why = rotary.why_not(cache_PSC, width)
    if why is not None:
        switch.refuse("rotary", why)
    return why is None
