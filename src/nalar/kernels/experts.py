"""SwiGLU experts over the tokens routed to them."""

# T tokens · D hidden · E experts · K experts per token · F expert width · R = T*K routed rows

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.kernels import switch
from nalar.kernels.grouped import by_expert, can_group, count, order, weight_grad
from nalar.kernels.linear import linear
from nalar.kernels.routed import RoutedExperts

FEW_FLOPS = 2e7
"""Below this a CPU is done with all experts sooner than with sorting tokens by theirs (bench/engine.py)."""

FEW_ROWS = 512
"""So many may be of a step that is recorded, for which nobody may wait."""


class Dense(NamedTuple):
    """Weights of a SwiGLU layer of width W, as linear layers hold them."""

    gate_WD: Tensor
    up_WD: Tensor
    down_DW: Tensor


def dense(x: Tensor, layer: Dense) -> Tensor:
    """down(silu(gate(x)) * up(x)); x: [..., D]."""
    if _is_few_row_dense(x, layer):
        from nalar.kernels.gpu.experts import few_row_dense

        return few_row_dense(x, layer)
    return linear(F.silu(linear(x, layer.gate_WD)) * linear(x, layer.up_WD), layer.down_DW)


def _is_few_row_dense(x: Tensor, layer: Dense) -> bool:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.dim() != 2:
        return False
    if not switch.runs("few_row_dense", x):
        return False
    from nalar.kernels.gpu import experts as gpu

    if len(x) > gpu.MOST_DENSE:
        return False
    why = gpu.why_not_dense(x, layer)
    if why is not None:
        switch.refuse("few_row_dense", why)
    return why is None


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
    is_compiling = torch.compiler.is_compiling()
    if x_TD.is_cuda or (not is_compiling and switch.runs("routed_experts", x_TD)):
        compute = RoutedExperts.apply
    else:
        # Uncompiled, one function of many operations is the cheapest; a compiler wants to see them.
        compute = _experts_in_parts if is_compiling else _Experts.apply
        weights_TK = weights_TK.to(x_TD.dtype)
    out_TD: Tensor = compute(x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF)  # type: ignore[no-untyped-call]
    return out_TD


def infer_experts(
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    shared: Dense | None = None,
) -> Tensor:
    """`experts` without a derivative, and the shared expert's output added, in the fastest form for this many tokens.

    On a GPU nobody waits for it up to a number of tokens, and its launches depend on that number alone.
    """
    if _is_few_rows(x_TD, ids_TK, gate_up_E2FD, down_EDF, shared):
        from nalar.kernels.gpu.experts import few_row_experts

        return few_row_experts(x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF, shared)
    if x_TD.is_cuda:
        # Without torch's grouped product sorted rows go expert by expert, and the host waits for their numbers.
        waits = not can_group(x_TD, *down_EDF.shape[1:])
        compute = every_expert if waits and len(x_TD) <= FEW_ROWS else experts
    elif 6 * len(x_TD) * down_EDF.numel() <= FEW_FLOPS:
        compute = every_expert
    else:
        compute = _grouped_experts if can_group(x_TD, *down_EDF.shape[1:]) else experts
    if compute is not experts:
        weights_TK = weights_TK.to(x_TD.dtype)
    out_TD = compute(x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF)
    return out_TD if shared is None else out_TD + dense(x_TD, shared)


def _is_few_rows(
    x_TD: Tensor, ids_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, shared: Dense | None
) -> bool:
    if not switch.runs("few_row_experts", x_TD):
        return False
    from nalar.kernels.gpu import experts as gpu

    if ids_TK.numel() > gpu.MOST_ROUTED:
        return False
    why = gpu.why_not(x_TD, gate_up_E2FD, down_EDF, shared)
    if why is not None:
        switch.refuse("few_row_experts", why)
    return why is None


def _grouped_experts(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    T, K = ids_TK.shape
    _, place_R, token_R = order(ids_TK)
    ends_E = count(ids_TK, len(down_EDF)).cumsum(0, dtype=torch.int32)
    rows_RD = x_TD.index_select(0, token_R)
    gate_up = gate_up_E2FD.flatten(1, 2).transpose(1, 2)
    gate, up = torch._grouped_mm(rows_RD, gate_up, offs=ends_E).chunk(2, dim=-1)
    act_RF = _silu(gate).mul_(up)
    y_RD = torch._grouped_mm(act_RF, down_EDF.transpose(1, 2), offs=ends_E)
    y_TKD = y_RD.index_select(0, place_R).view(T, K, -1)
    return torch.bmm(weights_TK[:, None], y_TKD).squeeze(1)


def every_expert(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """`experts`, with every token through every expert and a weight of 0 where it was not sent.

    E / K times the work, in products whose shape depends on T alone: no token's numbers depend on
    where others were sent.
    """
    T, E = len(x_TD), len(down_EDF)
    gate_TEF, up_TEF = torch.mm(x_TD, gate_up_E2FD.flatten(0, 2).T).view(T, E, 2, -1).unbind(2)
    weights_TE = x_TD.new_zeros(T, E).scatter_(1, ids_TK, weights_TK)
    act_TEF = _silu(gate_TEF).mul_(up_TEF).mul_(weights_TE[..., None])
    return torch.bmm(act_TEF.transpose(0, 1), down_EDF.transpose(1, 2)).sum(0)


def _silu(half: Tensor) -> Tensor:
    """Of one half of each row. A CPU takes several numbers at a time only where rows lie end to end."""
    return F.silu(half.contiguous(), inplace=True)


def _experts_in_parts(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    T, K = ids_TK.shape
    with torch.no_grad():
        order_R, place_R, token_R = order(ids_TK)
        sizes_E = count(ids_TK, len(down))
    rows_RD = _ToRows.apply(x_TD, token_R, place_R, K)  # type: ignore[no-untyped-call]
    gate, up = _ByExpert.apply(rows_RD, sizes_E, gate_up.flatten(1, 2)).chunk(2, dim=-1)  # type: ignore[no-untyped-call]
    y_RD = _ByExpert.apply(F.silu(gate) * up, sizes_E, down)  # type: ignore[no-untyped-call]
    y_TKD = _ToRows.apply(y_RD, place_R, order_R, 1).view(T, K, -1)  # type: ignore[no-untyped-call]
    out_TD: Tensor = (weights_TK[..., None] * y_TKD).sum(1)
    return out_TD


class _ToRows(torch.autograd.Function):
    """Rows of x by index, each `times` times in all; `back` says where, so that the derivative is a gather too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index_R: Tensor, back_R: Tensor, times: int) -> Tensor:
        ctx.save_for_backward(back_R)
        ctx.times = times
        return x.index_select(0, index_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (back_R,) = ctx.saved_tensors
        grad = grads[0].index_select(0, back_R)
        grad = grad if ctx.times == 1 else grad.unflatten(0, (-1, ctx.times)).sum(1)
        return grad, None, None, None


class _ByExpert(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes_E: Tensor, weight_E: Tensor) -> Tensor:
        ctx.save_for_backward(rows, sizes_E, weight_E)
        return by_expert(rows, sizes_E, weight_E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, sizes_E, weight_E = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_rows = by_expert(grad, sizes_E, weight_E.transpose(1, 2))
        learns = ctx.needs_input_grad[2]  # not where the experts are frozen
        return grad_rows, None, weight_grad(grad, rows, sizes_E) if learns else None


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        T, K = ids_TK.shape
        order_R, place_R, token_R = order(ids_TK)
        sizes = count(ids_TK, len(down))
        rows_RD = x_TD.index_select(0, token_R)
        gu_R2F = by_expert(rows_RD, sizes, gate_up.flatten(1, 2))
        gate, up = gu_R2F.chunk(2, dim=-1)
        act_RF = F.silu(gate).mul_(up)
        y_RD = by_expert(act_RF, sizes, down)
        y_TKD = y_RD.index_select(0, place_R).view(T, K, -1)
        out_TD = torch.bmm(weights_TK[:, None], y_TKD).squeeze(1)
        ctx.save_for_backward(
            rows_RD,
            gu_R2F,
            act_RF,
            y_TKD,
            weights_TK,
            gate_up,
            down,
            token_R,
            order_R,
            place_R,
            sizes,
        )
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TD,) = grads
        rows, gu, act, y_TKD, weights_TK, gate_up, down, token_R, order_R, place_R, sizes = (
            ctx.saved_tensors
        )
        T, K = weights_TK.shape
        grad_weights_TK = torch.bmm(y_TKD, grad_TD[:, :, None]).squeeze(-1)
        weight_R1 = weights_TK.flatten().index_select(0, order_R)[:, None]
        grad_y = grad_TD.index_select(0, token_R).mul_(weight_R1)
        learns_gate_up, learns_down = ctx.needs_input_grad[3:5]  # not where the experts are frozen
        grad_down = weight_grad(grad_y, act, sizes) if learns_down else None
        grad_act = by_expert(grad_y, sizes, down.transpose(1, 2))
        gate, up = gu.chunk(2, dim=-1)
        gate_sigmoid = gate.sigmoid()
        grad_gu = torch.empty_like(gu)
        grad_gate, grad_up = grad_gu.chunk(2, dim=-1)
        # silu(g) = g*s(g), so silu'(g) = s + g*s*(1-s)
        silu = gate * gate_sigmoid
        torch.mul(grad_act, silu, out=grad_up)
        torch.mul(grad_act * up, gate_sigmoid + silu * (1 - gate_sigmoid), out=grad_gate)
        flat_gate_up = gate_up.flatten(1, 2)
        grad_gate_up = (
            weight_grad(grad_gu, rows, sizes).view_as(gate_up) if learns_gate_up else None
        )
        grad_rows = by_expert(grad_gu, sizes, flat_gate_up.transpose(1, 2))
        grad_x = grad_rows.index_select(0, place_R).view(T, K, -1).sum(1)
        return grad_x, None, grad_weights_TK, grad_gate_up, grad_down
