"""Causal attention over whole documents (training, prefill), and of a few queries a row over a cache (decode)."""

# N tokens of a flat batch · B batch · T tokens · H heads · K query/key width · W value width
# S slots of all sides · J2 sides, padded · R latent · G heads of keys and values · Q queries of a row
# X queries of one head of keys (also: S*H) · C what a token has in the cache

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.kernels import switch
from nalar.kernels.documents import Documents
from nalar.kernels.fused_attention import backend_for, can_fuse
from nalar.kernels.opaque import apart, opaque
from nalar.kernels.paging import Hidden, Paging, read_rows
from nalar.kernels.projections import head_by_head

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
KEY_TILE = 64
"""Keys that deterministic attention takes at a time."""

Observe = Literal["nothing", "bound", "exact"]
"""What to learn of the largest pre-softmax logits: a bound costs nothing where attention gives its log-sum-exp."""


def document_attention(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGW: Tensor,
    documents: Documents,
    *,
    scale: float,
    observe: Observe = "nothing",
) -> tuple[Tensor, Tensor | None]:
    """Causal attention within each document: [N, H, W], and the largest logits fp32 [H] when observed.

    H is a multiple of G: neighbouring heads of queries share one of keys and values.
    """
    if observe != "exact" and _has_one_operation(q_NHK, v_NGW):
        return _attend_at_once(q_NHK, k_NGK, v_NGW, documents, scale, observe)
    return _attend_by_side(q_NHK, k_NGK, v_NGW, documents, scale, observe)


@apart
def _attend_by_side(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGW: Tensor,
    documents: Documents,
    scale: float,
    observe: Observe,
) -> tuple[Tensor, Tensor | None]:
    """One call a side. Sides are others in every batch, and so would programs be."""
    outs, seen = [], []
    spread = [documents.spread(x) for x in (q_NHK, k_NGK, v_NGW)]
    for q_BTHK, k_BTGK, v_BTGW in zip(*spread, strict=True):
        out_BHTW, observed_H = causal_attention(
            q_BTHK.transpose(1, 2),
            k_BTGK.transpose(1, 2),
            v_BTGW.transpose(1, 2),
            scale=scale,
            observe=observe,
        )
        outs.append(out_BHTW.transpose(1, 2))
        if observed_H is not None:
            seen.append(observed_H)
    return documents.join(outs), torch.stack(seen).amax(0) if seen else None


def _has_one_operation(q: Tensor, v: Tensor) -> bool:
    """Whether a kernel that tells its log-sum-exps takes such widths, so that all sides are one operation."""
    return q.shape[-1] == v.shape[-1] if _is_on_cpu(q) else can_fuse(q, v)


def _is_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _attend_at_once(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGW: Tensor,
    documents: Documents,
    scale: float,
    observe: Observe,
) -> tuple[Tensor, Tensor | None]:
    """All sides as one operation: few nodes for autograd, and one that torch.compile need not look into."""
    if _is_on_cpu(
        q_NHK
    ):  # its kernel wants a head of keys for each of queries, those of GPUs do not
        k_NGK, v_NGW = _for_each_query_head(q_NHK.shape[1], 1, k_NGK, v_NGW)
    slots = [documents.into_slots(x) for x in (q_NHK, k_NGK, v_NGW)]
    out_SHW, bound_H = _Attend.apply(*slots, documents.sides_J2, scale)  # type: ignore[no-untyped-call]
    return documents.out_of_slots(out_SHW), bound_H.float() if observe == "bound" else None


def _attend_shapes(
    q_SHK: Tensor, k_SGK: Tensor, v_SGW: Tensor, sides_J2: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    (S, H, _), W = q_SHK.shape, v_SGW.shape[-1]
    lse_X = q_SHK.new_empty(S * H, dtype=torch.promote_types(q_SHK.dtype, torch.float32))
    return q_SHK.new_empty(S, H, W), lse_X, lse_X.new_empty(H)


@opaque(_attend_shapes)
def _attend(
    q_SHK: Tensor, k_SGK: Tensor, v_SGW: Tensor, sides_J2: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention within each row of each side: [S, H, W], log-sum-exps, their largest of each head.

    The log-sum-exps lie as the kernel left them, side after side: what comes back to it must.
    """
    outs, lses, bounds = [], [], []
    for q, k, v in _by_side(sides_J2, q_SHK, k_SGK, v_SGW):
        if _is_on_cpu(q):
            # what scaled_dot_product_attention calls on a CPU, by name for its second output
            out, lse_BHT = FLASH.default(q, k, v, 0.0, True, scale=scale)
            lses.append(lse_BHT.transpose(1, 2).reshape(-1))  # heads behind tokens
        else:
            out, lse_BHT = backend_for(q, k, v).forward(q, k, v, scale)
            lses.append(lse_BHT.reshape(-1))
        outs.append(out.transpose(1, 2).flatten(0, 1))
        bounds.append(lse_BHT.amax((0, 2)))
    return _joined(outs), _joined(lses), torch.stack(bounds).amax(0)


def _attend_backward_shapes(
    grad_SHW: Tensor,
    q_SHK: Tensor,
    k_SGK: Tensor,
    v_SGW: Tensor,
    out_SHW: Tensor,
    lse_X: Tensor,
    sides_J2: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.new_empty(x.shape) for x in (q_SHK, k_SGK, v_SGW))
    return q, k, v


@opaque(_attend_backward_shapes)
def _attend_backward(
    grad_SHW: Tensor,
    q_SHK: Tensor,
    k_SGK: Tensor,
    v_SGW: Tensor,
    out_SHW: Tensor,
    lse_X: Tensor,
    sides_J2: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grads: list[tuple[Tensor, ...]] = []
    H, at = q_SHK.shape[1], 0
    for grad, q, k, v, out in _by_side(sides_J2, grad_SHW, q_SHK, k_SGK, v_SGW, out_SHW):
        (B, _, T, _), end = q.shape, at + q.shape[0] * q.shape[2] * H
        if _is_on_cpu(q):
            lse_BHT = lse_X[at:end].view(B, T, H).transpose(1, 2)
            found = FLASH_BACKWARD.default(grad, q, k, v, out, lse_BHT, 0.0, True, scale=scale)
        else:
            lse_BHT = lse_X[at:end].view(B, H, T)
            found = backend_for(q, k, v).backward(grad, q, k, v, out, lse_BHT, scale)
        grads.append(tuple(x.transpose(1, 2).flatten(0, 1) for x in found))
        at = end
    q, k, v = (_joined(parts) for parts in zip(*grads, strict=True))
    return q, k, v


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One side, as packed rows are, needs no copy."""
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts))


def _by_side(sides_J2: Tensor, *tensors_SH: Tensor) -> Iterator[list[Tensor]]:
    """Each tensor [S, H, ...] as one [B, H, T, ...] a side."""
    tensors_SH = tuple(x if _is_on_cpu(x) else _aligned(x) for x in tensors_SH)
    sides = [(B, T) for B, T in sides_J2.tolist() if B]
    sizes = [B * T for B, T in sides]
    for (B, T), *parts in zip(sides, *(x.split(sizes) for x in tensors_SH), strict=True):
        yield [part.view(B, T, *part.shape[1:]).transpose(1, 2) for part in parts]


def _aligned(x_SHK: Tensor) -> Tensor:
    """Kernels of GPUs read 16 bytes at a time; rows that begin elsewhere, as values behind keys may, are copied."""
    at_once = 16 // x_SHK.itemsize
    is_aligned = x_SHK.data_ptr() % 16 == 0 and all(n % at_once == 0 for n in x_SHK.stride()[:-1])
    return x_SHK if is_aligned else x_SHK.contiguous()


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_SHK: Tensor, k_SGK: Tensor, v_SGW: Tensor, sides_J2: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        out_SHW, lse_X, bound_H = _attend(q_SHK, k_SGK, v_SGW, sides_J2, scale)
        ctx.save_for_backward(q_SHK, k_SGK, v_SGW, out_SHW, lse_X, sides_J2)
        ctx.scale = scale
        ctx.mark_non_differentiable(bound_H)
        return out_SHW, bound_H

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_SHK, k_SGK, v_SGW, out_SHW, lse_X, sides_J2 = ctx.saved_tensors
        grad_SHW = grads[0].contiguous()
        found = _attend_backward(grad_SHW, q_SHK, k_SGK, v_SGW, out_SHW, lse_X, sides_J2, ctx.scale)
        return *found, None, None


def causal_attention(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTW: Tensor, *, scale: float, observe: Observe = "nothing"
) -> tuple[Tensor, Tensor | None]:
    """Softmax(q k^T * scale) v with a causal mask: [B, H, T, W], and fp32 [H] when observed.

    The bound is the largest log-sum-exp of a row per head, over batch and rows: never below the
    largest pre-softmax logit and at most log(T) above it.
    """
    k_BHTK, v_BHTW = _for_each_query_head(q_BHTK.shape[1], 1, k_BGTK, v_BGTW)
    exact_H = max_logit(q_BHTK, k_BHTK, scale=scale) if observe == "exact" else None
    if q_BHTK.device.type == "cpu" and q_BHTK.shape[-1] == v_BHTW.shape[-1]:
        # what scaled_dot_product_attention calls on a CPU, by name for its second output
        out, lse_BHT = FLASH.default(q_BHTK, k_BHTK, v_BHTW, 0.0, True, scale=scale)
        return out, lse_BHT.detach().amax((0, 2)).float() if observe == "bound" else exact_H
    out = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTW, is_causal=True, scale=scale)
    return out, max_logit(q_BHTK, k_BHTK, scale=scale) if observe == "bound" else exact_H


def _for_each_query_head(num_heads: int, dim: int, *kv: Tensor) -> list[Tensor]:
    """Heads of keys and values, each repeated for the query heads that share it."""
    return [
        x if x.shape[dim] == num_heads else x.repeat_interleave(num_heads // x.shape[dim], dim)
        for x in kv
    ]


@torch.no_grad()
def max_logit(q_BHTK: Tensor, k_BHTK: Tensor, *, scale: float, chunk: int = 512) -> Tensor:
    """The largest causal pre-softmax logit of each head, fp32 [H], a block of query rows at a time."""
    T = q_BHTK.shape[2]
    best = q_BHTK.new_full((q_BHTK.shape[1],), -torch.inf, dtype=torch.float32)
    for a in range(0, T, chunk):
        q = q_BHTK[:, :, a : a + chunk]
        keys = min(T, a + chunk)
        logits = _in_float32(q, k_BHTK[:, :, :keys]) * scale
        hidden = torch.ones(q.shape[2], keys, dtype=torch.bool, device=q.device).triu(a + 1)
        best = torch.maximum(best, logits.masked_fill_(hidden, -torch.inf).amax((0, 2, 3)))
    return best


def _in_float32(q_BHQK: Tensor, k_BHTK: Tensor) -> Tensor:
    """Logits but for their scale, [B, H, Q, T]: rounded to bfloat16 they would be off by 1 in 500, and so the cap."""
    if q_BHQK.is_cuda and q_BHQK.dtype in (torch.bfloat16, torch.float16):
        rows, columns = q_BHQK.flatten(0, 1), k_BHTK.flatten(0, 1).mT
        logits: Tensor = torch.bmm(rows, columns, out_dtype=torch.float32)
        return logits.view(*q_BHQK.shape[:2], *logits.shape[1:])
    return q_BHQK.float() @ k_BHTK.float().mT


def chunk_attention(q_QHK: Tensor, k_TGK: Tensor, v_TGW: Tensor, *, scale: float) -> Tensor:
    """The last Q tokens of a sequence of T, causal: [Q, H, W]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_QHK, k_TGK, v_TGW))
    k, v = _for_each_query_head(q.shape[1], 1, k, v)
    Q, T = q.shape[2], k.shape[2]
    behind = None if Q == T else _up_to_each(Q, T, q.device)
    out_1HQW: Tensor = F.scaled_dot_product_attention(
        q, k, v, attn_mask=behind, is_causal=Q == T, scale=scale
    )
    return out_1HQW[0].transpose(0, 1)


def _up_to_each(Q: int, T: int, device: torch.device) -> Tensor:
    """What the last Q of T tokens may see, bool [Q, T]; on a GPU without the memory that it would take."""
    if device.type == "cuda":
        # Here, since it loads the compilers: two seconds that no start of a command should wait for.
        from torch.nn.attention.bias import causal_lower_right

        return causal_lower_right(Q, T)
    return torch.ones(Q, T, dtype=torch.bool, device=device).tril(T - Q)


def absorbed_attention(
    q_QHC: Tensor, seen_TC: Tensor, hidden_QT: Tensor, *, latent_dim: int, scale: float
) -> Tensor:
    """Q queries of one sequence against its latents, the attention-weighted latent [Q, H, R]: no score is kept.

    seen_TC: per token the normed latent (first latent_dim columns), then the rotated key; hidden_QT: additive.
    """
    q_HQC, seen_HTC = q_QHC.transpose(0, 1), seen_TC.expand(q_QHC.shape[1], -1, -1)
    # Keys for values too, since the kernel takes one width: of what it mixes the keys are left out.
    both = F.scaled_dot_product_attention(
        q_HQC[None], seen_HTC[None], seen_HTC[None], attn_mask=hidden_QT, scale=scale
    )
    return both[0, :, :, :latent_dim].transpose(0, 1)


def paged_latent_attention(
    q_NHR: Tensor,
    q_NHP: Tensor,
    v_HWR: Tensor,
    cache_PSC: Tensor,
    paging: Paging,
    hidden: Hidden,
    *,
    scale: float,
) -> Tensor:
    """Absorbed and rotated queries of `paging`'s rows against what the cache holds of them: [N, H, W].

    cache_PSC: per token the normed latent, then the rotated key; v_HWR: what makes values of latents. The kernel
    is for inference alone.
    """
    assert paging.tables_BM is not None, "rows"
    R = q_NHR.shape[-1]
    if _use_kernel(cache_PSC, paging, R, is_latent=True):
        from nalar.kernels.gpu import paged

        at_N, first = paging.row_positions_N, paging.first
        return paged.latent_attention(
            q_NHR, q_NHP, v_HWR, cache_PSC, paging.tables_BM, at_N, first=first, scale=scale
        )
    q_NHC, cache_BTC = torch.cat([q_NHR, q_NHP], -1), read_rows(cache_PSC, paging)
    if paging.tiled:
        k, v = cache_BTC[:, :, None], cache_BTC[:, :, None, :R]
        mixed_NHR = tiled_attention(q_NHC, k, v, hidden()[:, 0], scale=scale)
    else:
        q_BQHC = q_NHC.unflatten(0, (len(cache_BTC), -1))
        mixed = latent_attention(q_BQHC, cache_BTC, hidden(), latent_dim=R, scale=scale)
        mixed_NHR = mixed.flatten(0, 1)
    return head_by_head(mixed_NHR, v_HWR.transpose(1, 2))


def paged_grouped_attention(
    q_NHK: Tensor,
    cache_PSC: Tensor,
    paging: Paging,
    hidden: Hidden,
    *,
    num_groups: int,
    scale: float,
) -> Tensor:
    """Queries of `paging`'s rows against the keys [G, K] and values [G, K] that the cache holds: [N, H, K].

    The kernel is for inference alone.
    """
    assert paging.tables_BM is not None, "rows"
    if _use_kernel(cache_PSC, paging, q_NHK.shape[-1], is_latent=False):
        from nalar.kernels.gpu import paged

        at_N, first = paging.row_positions_N, paging.first
        return paged.grouped_attention(
            q_NHK, cache_PSC, paging.tables_BM, at_N, groups=num_groups, first=first, scale=scale
        )
    k, v = read_rows(cache_PSC, paging).unflatten(-1, (2, num_groups, -1)).unbind(-3)
    if paging.tiled:
        return tiled_attention(q_NHK, k, v, hidden()[:, 0], scale=scale)
    q_BQHK = q_NHK.unflatten(0, (len(k), -1))
    return grouped_attention(q_BQHK, k, v, hidden(), scale=scale).flatten(0, 1)


def _use_kernel(cache_PSC: Tensor, paging: Paging, width: int, *, is_latent: bool) -> bool:
    if paging.tiled or torch.is_grad_enabled():
        return False
    return reads_seen_blocks(cache_PSC, width, is_latent=is_latent)


def reads_seen_blocks(cache_PSC: Tensor, width: int, *, is_latent: bool) -> bool:
    """Whether attention of rows reads the blocks that they see and no others: a kernel does, where it takes such a
    cache. The plain form reads all that the table names.

    width: of a latent, or of a head.
    """
    if not switch.runs("paged_attention", cache_PSC):
        return False
    from nalar.kernels.gpu import paged

    why = paged.why_not(cache_PSC, width, is_latent=is_latent)
    if why is not None:
        switch.refuse("paged_attention", why)
    return why is None


def latent_attention(
    q_BQHC: Tensor, cache_BTC: Tensor, hidden_BQT: Tensor, *, latent_dim: int, scale: float
) -> Tensor:
    """Q queries per row against cached latents: [B, Q, H, R], the attention-weighted latent.

    cache_BTC: per token the normed latent (first latent_dim columns), then the rotated key.
    hidden_BQT: -inf where a key is not visible, else 0 (additive).
    """
    Q, H = q_BQHC.shape[1:3]
    hidden = hidden_BQT if Q == 1 else hidden_BQT.repeat_interleave(H, dim=1)
    scores = torch.baddbmm(
        hidden, q_BQHC.flatten(1, 2), cache_BTC.transpose(1, 2), beta=1.0, alpha=scale
    )
    mixed = torch.bmm(scores.softmax(-1), cache_BTC[..., :latent_dim])
    return mixed.view(-1, Q, H, latent_dim)


def grouped_attention(
    q_BQHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, hidden_BQT: Tensor, *, scale: float
) -> Tensor:
    """Q queries per row and head against cached keys and values: [B, Q, H, K].

    hidden_BQT: -inf where a key is not visible, else 0 (additive).
    """
    (B, Q, H, K), G = q_BQHK.shape, k_BTGK.shape[2]
    # The query heads of a group stand where the tokens of a sequence would: no key is copied for them.
    q_BGXK = q_BQHK.view(B, Q, G, -1, K).transpose(1, 2).flatten(2, 3)
    out_BGXK = F.scaled_dot_product_attention(
        q_BGXK,
        k_BTGK.transpose(1, 2),
        v_BTGK.transpose(1, 2),
        attn_mask=hidden_BQT.repeat_interleave(H // G, dim=1)[:, None],
        scale=scale,
    )
    out_BQHK: Tensor = out_BGXK.unflatten(2, (Q, -1)).transpose(1, 2).flatten(2, 3)
    return out_BQHK


def tiled_attention(
    q_BHK: Tensor, k_BTGK: Tensor, v_BTGW: Tensor, hidden_BT: Tensor, *, scale: float
) -> Tensor:
    """One query per row, [B, H, W], the same to the bit however many keys other rows have.

    Keys are taken in tiles of fixed size, one after another (online softmax, arXiv:1805.02867). A tile
    that a row does not see multiplies by 1 and adds 0.
    """
    (B, H, _), G = q_BHK.shape, k_BTGK.shape[2]
    q_BGXK = q_BHK.unflatten(1, (G, -1)).float()
    best = q_BGXK.new_full((B, G, H // G, 1), -torch.inf)
    total, out = torch.zeros_like(best), q_BGXK.new_zeros(B, G, H // G, v_BTGW.shape[-1])
    missing = -hidden_BT.shape[1] % KEY_TILE
    tiles = [x.split(KEY_TILE, dim=1) for x in (k_BTGK, v_BTGW, hidden_BT)]
    for k, v, hidden in zip(*tiles, strict=True):
        if len(hidden[0]) < KEY_TILE:
            k, v = (F.pad(x, (0, 0, 0, 0, 0, missing)) for x in (k, v))
            hidden = F.pad(hidden, (0, missing), value=-torch.inf)
        scores = q_BGXK @ k.float().permute(0, 2, 3, 1) * scale + hidden[:, None, None].float()
        higher = torch.maximum(best, scores.amax(-1, keepdim=True))
        kept, weights = (best - higher).exp(), (scores - higher).exp()
        total = total * kept + weights.sum(-1, keepdim=True)
        out = out * kept + weights @ v.float().transpose(1, 2)
        best = higher
    out_BHW: Tensor = (out / total).flatten(1, 2).to(q_BHK.dtype)
    return out_BHW
