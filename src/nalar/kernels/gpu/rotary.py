"""From raw projections to what attention over a cache needs, in one pass: norms, rotation, and the cache's entries.

One program takes some heads of one token, or its latent and shared key. Rounded where the plain form rounds: after
a norm and after the rotation. For inference: no gradient.
"""

# N tokens · H heads · G heads of keys and values · K width of a head · R latent · P rotated width, half of it pairs
# C what a token has in the cache

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS = 4
"""Heads that one program takes."""
MOST_WIDTH = 2048
"""Numbers of a head, or of a latent."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def why_not(cache_PSC: Tensor, width: int) -> str | None:
    """What these kernels do not take, if anything: the largest of R, P and K, and the cache's own shape."""
    if width > MOST_WIDTH:
        return f"heads of {width} numbers, above {MOST_WIDTH}"
    if cache_PSC.dtype not in DTYPES:
        return f"a cache of {cache_PSC.dtype}"
    return None if cache_PSC.is_contiguous() else "a cache with gaps"


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
    """Queries [N, H, P], rotated, and the first `num_kept` entries [num_kept, C]; all entries go to their slots.

    q_NHP: any strides but the last's, which is 1. kv_NC: the latent before its norm, then the key before its
    rotation. turn_NP: complex64 [N, P/2]. slots_N: int64, no two alike but for padding, of which either is written.
    """
    (N, H, P), C, R = q_NHP.shape, kv_NC.shape[1], weight_R.shape[0]
    turned_NHP = torch.empty((N, H, P), dtype=q_NHP.dtype, device=q_NHP.device)
    entries_NC = torch.empty((num_kept, C), dtype=kv_NC.dtype, device=q_NHP.device)
    _latent_entry[(N, 1 + triton.cdiv(H, HEADS))](
        q_NHP,
        kv_NC,
        torch.view_as_real(turn_NP),
        weight_R,
        slots_N,
        turned_NHP,
        entries_NC,
        cache_PSC,
        num_kept,
        eps,
        *q_NHP.stride()[:2],
        kv_NC.stride(0),
        H=H,
        R=R,
        P=P,
        IS_INTERLEAVED=interleave,
        HEADS=HEADS,
        BLOCK_R=triton.next_power_of_2(R),
        BLOCK_I=triton.next_power_of_2(P // 2),
        num_warps=2 if R <= 256 else 4,
    )
    return turned_NHP, entries_NC


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
    """Queries [N, H, K], normed and rotated; entries are keys [G, K], normed and rotated, then values [G, K].

    weights: [K] of the norms of queries and keys; None: there are none. Otherwise as `latent_entries`.
    """
    (N, H, K), G = q_NHK.shape, k_NGK.shape[1]
    turned_NHK = torch.empty((N, H, K), dtype=q_NHK.dtype, device=q_NHK.device)
    entries_NC = torch.empty((num_kept, 2 * G * K), dtype=k_NGK.dtype, device=q_NHK.device)
    q_weight, k_weight = (q_NHK, k_NGK) if weights is None else weights
    _grouped_entry[(N, triton.cdiv(H, HEADS) + 2 * triton.cdiv(G, HEADS))](
        q_NHK,
        k_NGK,
        v_NGK,
        torch.view_as_real(turn_NK),
        q_weight,
        k_weight,
        slots_N,
        turned_NHK,
        entries_NC,
        cache_PSC,
        num_kept,
        eps,
        *q_NHK.stride()[:2],
        *k_NGK.stride()[:2],
        *v_NGK.stride()[:2],
        H=H,
        G=G,
        K=K,
        IS_NORMED=weights is not None,
        IS_INTERLEAVED=interleave,
        HEADS=HEADS,
        BLOCK_K=triton.next_power_of_2(K),
        BLOCK_I=triton.next_power_of_2(K // 2),
        num_warps=1 if K <= 64 else 2,
    )
    return turned_NHK, entries_NC


@triton.jit
def _turn(
    x_ptr,
    x_head,
    head,
    weight_ptr,
    turn_ptr,
    eps,
    out_ptr,
    kept_ptr,
    is_kept,
    NUM: tl.constexpr,
    K: tl.constexpr,
    IS_NORMED: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Heads of one token, normed if need be and rotated in float32, to a row [NUM, K] in one place or two."""
    i = tl.arange(0, BLOCK_I)
    is_pair = i < K // 2
    a_at = 2 * i if IS_INTERLEAVED else i
    b_at = 2 * i + 1 if IS_INTERLEAVED else i + K // 2
    is_in = (head < NUM)[:, None] & is_pair[None, :]
    x = x_ptr + (head * x_head)[:, None]
    a = tl.load(x + a_at[None, :], mask=is_in, other=0.0)
    b = tl.load(x + b_at[None, :], mask=is_in, other=0.0)
    dtype: tl.constexpr = a.dtype
    a, b = a.to(tl.float32), b.to(tl.float32)
    if IS_NORMED:
        inverse = tl.rsqrt(tl.sum(a * a + b * b, 1) / K + eps)[:, None]
        a_weight = tl.load(weight_ptr + a_at, mask=is_pair, other=0.0).to(tl.float32)
        b_weight = tl.load(weight_ptr + b_at, mask=is_pair, other=0.0).to(tl.float32)
        a = (a * inverse * a_weight[None, :]).to(dtype).to(tl.float32)
        b = (b * inverse * b_weight[None, :]).to(dtype).to(tl.float32)
    cos = tl.load(turn_ptr + 2 * i, mask=is_pair, other=0.0)[None, :]
    sin = tl.load(turn_ptr + 2 * i + 1, mask=is_pair, other=0.0)[None, :]
    real, imaginary = a * cos - b * sin, a * sin + b * cos
    row = (head * K)[:, None]
    tl.store(out_ptr + row + a_at[None, :], real, mask=is_in)
    tl.store(out_ptr + row + b_at[None, :], imaginary, mask=is_in)
    if is_kept:
        tl.store(kept_ptr + row + a_at[None, :], real, mask=is_in)
        tl.store(kept_ptr + row + b_at[None, :], imaginary, mask=is_in)


# Prompts come in all lengths: of what depends on them there is one program, not one for each kind of number.
@triton.jit(do_not_specialize=["num_kept"], do_not_specialize_on_alignment=["slots_ptr"])
def _latent_entry(
    q_ptr,
    kv_ptr,
    turn_ptr,
    weight_ptr,
    slots_ptr,
    turned_ptr,
    entries_ptr,
    cache_ptr,
    num_kept,
    eps,
    q_token,
    q_head,
    kv_token,
    H: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    turn_ptr += n * P
    if tl.program_id(1) > 0:
        head = (tl.program_id(1) - 1) * HEADS + tl.arange(0, HEADS)
        out = turned_ptr + n * H * P
        _turn(
            q_ptr + n * q_token, q_head, head, q_ptr, turn_ptr, eps, out, out, False,
            H, P, False, IS_INTERLEAVED, BLOCK_I,
        )  # fmt: skip
    else:
        entry = cache_ptr + tl.load(slots_ptr + n) * (R + P)
        kept = entries_ptr + n * (R + P)
        kv = kv_ptr + n * kv_token
        r = tl.arange(0, BLOCK_R)
        latent = tl.load(kv + r, mask=r < R, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + r, mask=r < R, other=0.0).to(tl.float32)
        normed = latent * tl.rsqrt(tl.sum(latent * latent, 0) / R + eps) * weight
        tl.store(entry + r, normed, mask=r < R)
        tl.store(kept + r, normed, mask=(r < R) & (n < num_kept))
        _turn(
            kv + R, 0, tl.arange(0, 1), kv_ptr, turn_ptr, eps, entry + R, kept + R, n < num_kept,
            1, P, False, IS_INTERLEAVED, BLOCK_I,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_kept"], do_not_specialize_on_alignment=["slots_ptr"])
def _grouped_entry(
    q_ptr,
    k_ptr,
    v_ptr,
    turn_ptr,
    q_weight_ptr,
    k_weight_ptr,
    slots_ptr,
    turned_ptr,
    entries_ptr,
    cache_ptr,
    num_kept,
    eps,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    IS_NORMED: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Programs of a token: those of queries, then of keys, then of values."""
    K_START: tl.constexpr = (H + HEADS - 1) // HEADS
    V_START: tl.constexpr = K_START + (G + HEADS - 1) // HEADS
    n = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    turn_ptr += n * K
    entry = cache_ptr + tl.load(slots_ptr + n) * (2 * G * K)
    kept = entries_ptr + n * (2 * G * K)
    if program < K_START:
        q_heads = program * HEADS + tl.arange(0, HEADS)
        out = turned_ptr + n * H * K
        _turn(
            q_ptr + n * q_token, q_head, q_heads, q_weight_ptr, turn_ptr, eps, out, out, False,
            H, K, IS_NORMED, IS_INTERLEAVED, BLOCK_I,
        )  # fmt: skip
    elif program < V_START:
        k_heads = (program - K_START) * HEADS + tl.arange(0, HEADS)
        _turn(
            k_ptr + n * k_token, k_head, k_heads, k_weight_ptr, turn_ptr, eps, entry, kept,
            n < num_kept, G, K, IS_NORMED, IS_INTERLEAVED, BLOCK_I,
        )  # fmt: skip
    else:
        v_heads = ((program - V_START) * HEADS + tl.arange(0, HEADS))[:, None]
        k = tl.arange(0, BLOCK_K)[None, :]
        is_in = (v_heads < G) & (k < K)
        v = tl.load(v_ptr + n * v_token + v_heads * v_head + k, mask=is_in, other=0.0)
        at = (G + v_heads) * K + k
        tl.store(entry + at, v, mask=is_in)
        tl.store(kept + at, v, mask=is_in & (n < num_kept))
