"""SwiGLU experts over the tokens routed to them."""

# T tokens · D hidden · E experts · K experts per token · F expert width · R = T*K routed rows

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.kernels import switch
from nalar.kernels.linear import linear
from nalar.kernels.opaque import opaque

FEW_FLOPS = 5e6
"""Below this a CPU is done with all experts sooner than with sorting tokens by theirs (bench/engine.py)."""


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

    if len(x) > gpu.UNSORTED_DENSE:
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
    # Uncompiled, one function of many operations is the cheapest; a compiler wants to see them.
    compute = _experts_in_parts if torch.compiler.is_compiling() else _Experts.apply
    out_TD: Tensor = compute(x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF)
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

    On a GPU nobody waits for it, and up to a number of tokens its launches depend on that number alone.
    """
    if _is_few_rows(x_TD, ids_TK, gate_up_E2FD, down_EDF, shared):
        from nalar.kernels.gpu.experts import few_row_experts

        return few_row_experts(x_TD, ids_TK, weights_TK, gate_up_E2FD, down_EDF, shared)
    if x_TD.device.type == "cpu" and 6 * len(x_TD) * down_EDF.numel() <= FEW_FLOPS:
        compute = every_expert
    else:
        compute = _grouped_experts if _can_group(x_TD, down_EDF) else experts
    out_TD = compute(x_TD, ids_TK, weights_TK.to(x_TD.dtype), gate_up_E2FD, down_EDF)
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
    _, place_R, token_R = _order(ids_TK)
    ends_E = count(ids_TK, len(down_EDF)).cumsum(0, dtype=torch.int32)
    rows_RD = x_TD.index_select(0, token_R)
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


def count(ids_TK: Tensor, num_experts: int) -> Tensor:
    """Tokens sent to each expert, int64 [E]. Unlike bincount it has a shape that nobody waits for."""
    ids_R = ids_TK.flatten()
    return ids_R.new_zeros(num_experts).scatter_add_(0, ids_R, torch.ones_like(ids_R))


def _order(ids_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows sorted by expert: which choice is at each row, the row of each choice, the token at each row; all [R]."""
    order_R = ids_TK.flatten().argsort(stable=True)
    rows_R = torch.arange(ids_TK.numel(), device=ids_TK.device)
    place_R = torch.empty_like(order_R).scatter_(0, order_R, rows_R)
    return order_R, place_R, order_R // ids_TK.shape[1]


def _experts_in_parts(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    T, K = ids_TK.shape
    with torch.no_grad():
        order_R, place_R, token_R = _order(ids_TK)
        sizes_E = count(ids_TK, len(down))
    rows_RD = _ToRows.apply(x_TD, token_R, place_R, K)  # type: ignore[no-untyped-call]
    gate, up = _ByExpert.apply(rows_RD, sizes_E, gate_up.flatten(1, 2)).chunk(2, dim=-1)  # type: ignore[no-untyped-call]
    y_RD = _ByExpert.apply(F.silu(gate) * up, sizes_E, down)  # type: ignore[no-untyped-call]
    y_TKD = _ToRows.apply(y_RD, place_R, order_R, 1).view(T, K, -1)  # type: ignore[no-untyped-call]
    out_TD: Tensor = (weights_TK[..., None] * y_TKD).sum(1)
    return out_TD


def _by_expert_shape(rows_RA: Tensor, sizes_E: Tensor, weight_EBA: Tensor) -> Tensor:
    return rows_RA.new_empty(rows_RA.shape[0], weight_EBA.shape[1])


@opaque(_by_expert_shape)
def _by_expert(rows_RA: Tensor, sizes_E: Tensor, weight_EBA: Tensor) -> Tensor:
    """Rows times each expert's weight, transposed: [R, B]."""
    out = rows_RA.new_empty(len(rows_RA), weight_EBA.shape[1])
    sizes = sizes_E.tolist()
    parts = (rows_RA.split(sizes), weight_EBA.transpose(1, 2).unbind(), out.split(sizes))
    for rows, weight_AB, result in zip(*parts, strict=True):
        torch.mm(rows, weight_AB, out=result)
    return out


def _weight_grad_shape(grad_RB: Tensor, rows_RA: Tensor, sizes_E: Tensor) -> Tensor:
    return rows_RA.new_empty(sizes_E.shape[0], grad_RB.shape[1], rows_RA.shape[1])


@opaque(_weight_grad_shape)
def _weight_grad(grad_RB: Tensor, rows_RA: Tensor, sizes_E: Tensor) -> Tensor:
    """For each expert grad^T @ rows over its own rows: [E, B, A]."""
    out = rows_RA.new_empty(len(sizes_E), grad_RB.shape[1], rows_RA.shape[1])
    sizes = sizes_E.tolist()
    parts = (grad_RB.T.split(sizes, 1), rows_RA.split(sizes), out.unbind())
    for grad_BR, rows, result in zip(*parts, strict=True):
        torch.mm(grad_BR, rows, out=result)
    return out


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
        return _by_expert(rows, sizes_E, weight_E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor]:
        rows, sizes_E, weight_E = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_rows = _by_expert(grad, sizes_E, weight_E.transpose(1, 2))
        return grad_rows, None, _weight_grad(grad, rows, sizes_E)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        T, K = ids_TK.shape
        order_R, place_R, token_R = _order(ids_TK)
        sizes = count(ids_TK, len(down))
        rows_RD = x_TD.index_select(0, token_R)
        gu_R2F = _by_expert(rows_RD, sizes, gate_up.flatten(1, 2))
        gate, up = gu_R2F.chunk(2, dim=-1)
        act_RF = F.silu(gate).mul_(up)
        y_RD = _by_expert(act_RF, sizes, down)
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor, Tensor]:
        (grad_TD,) = grads
        rows, gu, act, y_TKD, weights_TK, gate_up, down, token_R, order_R, place_R, sizes = (
            ctx.saved_tensors
        )
        T, K = weights_TK.shape
        grad_weights_TK = torch.bmm(y_TKD, grad_TD[:, :, None]).squeeze(-1)
        weight_R1 = weights_TK.flatten().index_select(0, order_R)[:, None]
        grad_y = grad_TD.index_select(0, token_R).mul_(weight_R1)
        grad_down = _weight_grad(grad_y, act, sizes)
        grad_act = _by_expert(grad_y, sizes, down.transpose(1, 2))
        gate, up = gu.chunk(2, dim=-1)
        gate_sigmoid = gate.sigmoid()
        grad_gu = torch.empty_like(gu)
        grad_gate, grad_up = grad_gu.chunk(2, dim=-1)
        # silu(g) = g*s(g), so silu'(g) = s + g*s*(1-s)
        silu = gate * gate_sigmoid
        torch.mul(grad_act, silu, out=grad_up)
        torch.mul(grad_act * up, gate_sigmoid + silu * (1 - gate_sigmoid), out=grad_gate)
        flat_gate_up = gate_up.flatten(1, 2)
        grad_gate_up = _weight_grad(grad_gu, rows, sizes).view_as(gate_up)
        grad_rows = _by_expert(grad_gu, sizes, flat_gate_up.transpose(1, 2))
        grad_x = grad_rows.index_select(0, place_R).view(T, K, -1).sum(1)
        return grad_x, None, grad_weights_TK, grad_gate_up, grad_down
