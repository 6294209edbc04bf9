"""Causal attention of rows of one length by the fused kernels that torch has for GPUs, log-sum-exps included.

Called by name and not through scaled_dot_product_attention, which keeps the log-sum-exps to itself: QK-Clip lives on
them. Who computes is a function of the shape alone, so that forward and backward, and a run and its repeat, agree.
"""

# B rows · T tokens · H heads of queries · G of keys and values · K query/key width · W value width

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.kernels import switch

WHOLE_TILES = 128
"""cuDNN makes a plan for each shape that it meets, which takes longer than many steps: it gets rows of whole tiles,
as packed pretraining has them, and not documents of any length."""
TOLERANCE = 0.04
"""Of the trial, relative to the largest value: what rounding to bfloat16 explains."""

Forward = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
Grads = tuple[Tensor, Tensor, Tensor]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float], Grads]


class Backend(NamedTuple):
    """forward(q, k, v, scale): output and log-sum-exps fp32 [B, H, T]; backward(grad, q, k, v, output, lse, scale)."""

    name: str
    forward: Forward
    backward: Backward


def can_fuse(q: Tensor, v: Tensor) -> bool:
    """Whether this file is for such queries and values; widths are the last axes."""
    return (
        q.is_cuda
        and torch.version.cuda is not None
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[-1] % 8 == 0
        and v.shape[-1] % 8 == 0
        and v.shape[-1] <= q.shape[-1] <= 256
    )


def backend_for(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTW: Tensor) -> Backend:
    """The first of those that may be used which passes a trial here; tried once for each kind of head."""
    (_, H, T, K), G, W = q_BHTK.shape, k_BGTK.shape[1], v_BGTW.shape[-1]
    if not q_BHTK.is_cuda:
        return PLAIN
    return choose(q_BHTK.device, q_BHTK.dtype, H, G, K, W, T % WHOLE_TILES == 0)


@functools.cache
def choose(
    device: torch.device, dtype: torch.dtype, H: int, G: int, K: int, W: int, whole: bool
) -> Backend:
    backends = []
    if whole and torch.backends.cudnn.is_available() and torch.backends.cuda.cudnn_sdp_enabled():
        backends.append(CUDNN)
    if torch.backends.cuda.flash_sdp_enabled():
        backends.append(FLASH)
    for backend in backends:
        reason = _why_not(backend, device, dtype, H, G, K, W)
        if reason is None:
            return backend
        switch.refuse(f"attention by {backend.name}, heads {H}/{G} of {K}/{W}", reason)
    return PLAIN


@torch.no_grad()
def _why_not(
    backend: Backend, device: torch.device, dtype: torch.dtype, H: int, G: int, K: int, W: int
) -> str | None:
    """A trial against attention written out: output, log-sum-exps and all gradients."""
    gen = torch.Generator(device=device).manual_seed(0)
    T = 2 * WHOLE_TILES
    shapes = ((H, K), (G, K), (G, W), (H, W))
    q, k, v, grad = (
        torch.randn(2, T, *shape, device=device, generator=gen).to(dtype).transpose(1, 2)
        for shape in shapes
    )
    scale = K**-0.5
    try:
        out, lse = backend.forward(q, k, v, scale)
        found = (out, lse, *backend.backward(grad, q, k, v, out, lse, scale))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return str(error).split("\n", 1)[0]
    expected_out, expected_lse = PLAIN.forward(q, k, v, scale)
    expected = PLAIN.backward(grad, q, k, v, expected_out, expected_lse, scale)
    names = ("output", "log-sum-exps", "queries' gradient", "keys' gradient", "values' gradient")
    wanted = (expected_out, expected_lse, *expected)
    for name, one, other in zip(names, found, wanted, strict=True):
        if one.shape != other.shape:
            return f"{name}: shape {tuple(one.shape)}, not {tuple(other.shape)}"
        limit = TOLERANCE * other.float().abs().max()
        if not bool((one.float() - other.float()).abs().max() <= limit):
            return f"{name}: not what attention written out gives"
    return None


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, True, False, scale=scale
    )
    return out, lse.view(q.shape[:3])


def _cudnn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> Grads:
    nothing, T = _no_dropout(q), q.shape[2]
    dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *(grad, q, k, v, out, lse[..., None], nothing, nothing, None, None, None, T, T, 0.0, True),
        scale=scale,
    )
    return dq, dk, dv


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """It wants values as wide as keys: columns of zeros, which stay zeros in the output, fill them up."""
    missing = q.shape[-1] - v.shape[-1]
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        q, k, _widened(v, missing), 0.0, True, False, scale=scale
    )
    return out[..., : v.shape[-1]], lse


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> Grads:
    nothing, T, missing = _no_dropout(q), q.shape[2], q.shape[-1] - v.shape[-1]
    wide_grad, wide_v, wide_out = (_widened(x, missing) for x in (grad, v, out))
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        *(wide_grad, q, k, wide_v, wide_out, lse, None, None, T, T, 0.0, True, nothing, nothing),
        scale=scale,
    )
    return dq, dk, dv[..., : v.shape[-1]]


def _widened(x: Tensor, by: int) -> Tensor:
    return F.pad(x, (0, by)) if by else x


def _no_dropout(q: Tensor) -> Tensor:
    """Where the state of a random generator would stand; nothing reads it."""
    return torch.empty((), dtype=torch.int64, device=q.device)


def _plain(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention written out in fp32, a row of the batch at a time: what the others are held against."""
    each = [_plain_row(*row, scale) for row in zip(q, k, v, strict=True)]
    out, lse = (torch.stack(parts) for parts in zip(*each, strict=True))
    return out.to(q.dtype), lse


def _plain_row(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    logits = _logits(q, k, scale)
    return logits.softmax(-1) @ _for_queries(v, len(q)), logits.logsumexp(-1)


def _plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> Grads:
    rows = zip(grad, q, k, v, out, lse, strict=True)
    each = [_plain_row_backward(g, a, b, c, o, s, scale) for g, a, b, c, o, s in rows]
    dq, dk, dv = (torch.stack(parts) for parts in zip(*each, strict=True))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _plain_row_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> Grads:
    H, G = len(q), len(k)
    grad, k_H, v_H = grad.float(), _for_queries(k, H), _for_queries(v, H)
    weights = (_logits(q, k, scale) - lse[..., None]).exp()
    along = (grad * out.float()).sum(-1, keepdim=True)
    grad_logits = weights * (grad @ v_H.mT - along) * scale
    dk, dv = grad_logits.mT @ q.float(), weights.mT @ grad
    return grad_logits @ k_H, dk.unflatten(0, (G, -1)).sum(1), dv.unflatten(0, (G, -1)).sum(1)


def _logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    T = q.shape[1]
    logits = (q.float() @ _for_queries(k, len(q)).mT) * scale
    hidden = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return logits.masked_fill(hidden, -torch.inf)


def _for_queries(x: Tensor, heads: int) -> Tensor:
    return x.float().repeat_interleave(heads // len(x), 0)


CUDNN = Backend("cuDNN", _cudnn, _cudnn_backward)
FLASH = Backend("torch's flash", _flash, _flash_backward)
PLAIN = Backend("plain", _plain, _plain_backward)
