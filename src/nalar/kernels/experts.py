"""SwiGLU experts over the tokens routed to them."""

# T tokens · D hidden · E experts · K experts per token · F expert width · R = T*K routed rows

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_FLOPS = 5e6
"""Below this a CPU is done with all experts sooner than with sorting tokens by theirs (bench/engine.py)."""


def experts_reference(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """The oracle of `experts`: a plain loop over experts, differentiated by autograd."""
    out_TD = torch.zeros_like(x_TD)
    for e in range(len(down_EDF)):
        token, slot = (ids_TK == e).nonzero(as_tuple=True)
        gate, up = F.linear(x_TD[token], gate_up_E2FD[e].flatten(0, 1)).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, down_EDF[e]) * weights_TK[token, slot, None]
        out_TD = out_TD.index_add(0, token, y)
    return out_TD


def experts(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Weighted sum of each token's experts, [T, D].

    ids_TK: int64 in [0, E), distinct within a row; weights_TK: float. gate_up holds gate then up.
    Rows are sorted by expert, so each expert is one dense product; gathers both ways replace
    scatter-adds, which are slow on a CPU and not deterministic on a GPU.
    """
    out_TD: Tensor = _Experts.apply(  # type: ignore[no-untyped-call]
        x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF
    )
    return out_TD


def infer_experts(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """`experts` without a derivative, in the fastest form for this many tokens; on a GPU nobody waits for it."""
    if x_TD.device.type == "cpu" and 6 * len(x_TD) * down_EDF.numel() <= FEW_FLOPS:
        compute = every_expert
    else:
        compute = _grouped_experts if _can_group(x_TD, down_EDF) else experts
    return compute(x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF)


def _can_group(x_TD: Tensor, down_EDF: Tensor) -> bool:
    """torch's grouped product wants rows of whole 16 bytes, on a GPU bfloat16 and a Hopper chip or later."""
    widths = (x_TD.shape[-1], down_EDF.shape[-1])
    if not hasattr(torch, "_grouped_mm") or any(n * x_TD.dtype.itemsize % 16 for n in widths):
        return False
    if x_TD.device.type == "cuda":
        return (
            x_TD.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x_TD.device)[0] >= 9
        )
    return x_TD.dtype in (torch.float32, torch.bfloat16)


def _grouped_experts(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    T, K = ids_TK.shape
    ids_R = ids_TK.flatten()
    order_R = ids_R.argsort(stable=True)
    rows_R = torch.arange(T * K, device=x_TD.device)
    place_R = torch.empty_like(order_R).scatter_(0, order_R, rows_R)
    counts_E = ids_R.new_zeros(len(down_EDF)).scatter_add_(0, ids_R, torch.ones_like(ids_R))
    ends_E = counts_E.cumsum(0, dtype=torch.int32)
    rows_RD = x_TD.index_select(0, order_R // K)
    gate_up = gate_up_E2FD.flatten(1, 2).transpose(1, 2)
    gate, up = torch._grouped_mm(rows_RD, gate_up, offs=ends_E).chunk(2, dim=-1)
    y_RD = torch._grouped_mm(F.silu(gate) * up, down_EDF.transpose(1, 2), offs=ends_E)
    y_TKD = y_RD.index_select(0, place_R).view(T, K, -1)
    return torch.bmm(weights_TK[:, None], y_TKD).squeeze(1)


def every_expert(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """`experts`, with every token through every expert and a weight of 0 where it was not sent.

    E / K times the work, in products whose shape depends on T alone: no token's numbers depend on
    where others were sent.
    """
    E = len(down_EDF)
    gu_ET2F = torch.bmm(x_TD.expand(E, -1, -1), gate_up_E2FD.flatten(1, 2).transpose(1, 2))
    gate, up = gu_ET2F.chunk(2, dim=-1)
    y_ETD = torch.bmm(F.silu(gate) * up, down_EDF.transpose(1, 2))
    weights_TE = x_TD.new_zeros(len(x_TD), E).scatter_(1, ids_TK, weights_TK)
    return torch.bmm(weights_TE[:, None], y_ETD.transpose(0, 1)).squeeze(1)


def _by_expert(rows: Tensor, sizes: list[int], weight_E: Tensor) -> Tensor:
    """rows[R, a] times each expert's weight[E, b, a], transposed: [R, b]."""
    out = rows.new_empty(len(rows), weight_E.shape[1])
    start = 0
    for e, size in enumerate(sizes):
        torch.mm(rows[start : start + size], weight_E[e].T, out=out[start : start + size])
        start += size
    return out


def _weight_grad(grad_rows: Tensor, rows: Tensor, sizes: list[int], like_E: Tensor) -> Tensor:
    """For each expert grad_rows^T @ rows over its own rows: [E, b, a]."""
    out = torch.empty_like(like_E)
    start = 0
    for e, size in enumerate(sizes):
        torch.mm(grad_rows[start : start + size].T, rows[start : start + size], out=out[e])
        start += size
    return out


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        T, K = ids_TK.shape
        order_R = ids_TK.flatten().argsort(stable=True)
        place_R = torch.empty_like(order_R)
        place_R[order_R] = torch.arange(T * K, device=x_TD.device)
        sizes = torch.bincount(ids_TK.flatten(), minlength=len(down)).tolist()
        token_R = order_R.div(K, rounding_mode="floor")
        rows_RD = x_TD.index_select(0, token_R)
        gu_R2F = _by_expert(rows_RD, sizes, gate_up.flatten(1, 2))
        gate, up = gu_R2F.chunk(2, dim=-1)
        act_RF = F.silu(gate).mul_(up)
        y_RD = _by_expert(act_RF, sizes, down)
        y_TKD = y_RD.index_select(0, place_R).view(T, K, -1)
        out_TD = torch.bmm(weights_TK[:, None], y_TKD).squeeze(1)
        ctx.save_for_backward(
            rows_RD, gu_R2F, act_RF, y_TKD, weights_TK, gate_up, down, token_R, order_R, place_R
        )
        ctx.sizes = sizes
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor, Tensor]:
        (grad_TD,) = grads
        rows, gu, act, y_TKD, weights_TK, gate_up, down, token_R, order_R, place_R = (
            ctx.saved_tensors
        )
        T, K = weights_TK.shape
        grad_weights_TK = torch.bmm(y_TKD, grad_TD[:, :, None]).squeeze(-1)
        weight_R1 = weights_TK.flatten().index_select(0, order_R)[:, None]
        grad_y = grad_TD.index_select(0, token_R).mul_(weight_R1)
        grad_down = _weight_grad(grad_y, act, ctx.sizes, down)
        grad_act = _by_expert(grad_y, ctx.sizes, down.transpose(1, 2))
        gate, up = gu.chunk(2, dim=-1)
        gate_sigmoid = gate.sigmoid()
        grad_gu = torch.empty_like(gu)
        grad_gate, grad_up = grad_gu.chunk(2, dim=-1)
        # silu(g) = g*s(g), so silu'(g) = s + g*s*(1-s)
        silu = gate * gate_sigmoid
        torch.mul(grad_act, silu, out=grad_up)
        torch.mul(grad_act * up, gate_sigmoid + silu * (1 - gate_sigmoid), out=grad_gate)
        flat_gate_up = gate_up.flatten(1, 2)
        grad_gate_up = _weight_grad(grad_gu, rows, ctx.sizes, flat_gate_up).view_as(gate_up)
        grad_rows = _by_expert(grad_gu, ctx.sizes, flat_gate_up.transpose(1, 2))
        grad_x = grad_rows.index_select(0, place_R).view(T, K, -1).sum(1)
        return grad_x, None, grad_weights_TK, grad_gate_up, grad_down
