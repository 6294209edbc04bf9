"""Experts over many rows on a GPU, differentiable: nothing waits for the host, and few passes over the rows."""

# T tokens · D hidden · E experts · K experts per token · F expert width · R = T*K routed rows

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.kernels import switch
from nalar.kernels.grouped import grouped_outer, grouped_product, sort_routes
from nalar.kernels.opaque import opaque


class RoutedExperts(torch.autograd.Function):
    """Kept for the derivative are the sorted rows and gate and up of each, not activations nor expert outputs.

    With h = grad[token] @ down, which knows no weight: the gradient of a weight is h · activation, and that of an
    activation is weight * h. So one pass over h and gate_up gives all that the products need (arXiv:2512.14080).
    """

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        order_R, place_R, ends_E = sort_routes(ids_TK, down.shape[0])
        rows_RD = spread(x_TD, place_R, ids_TK.shape[1])
        gu_R2F = grouped_product(rows_RD, gate_up.flatten(1, 2).transpose(1, 2), ends_E)
        y_RD = grouped_product(swiglu(gu_R2F), down.transpose(1, 2), ends_E)
        kept = (rows_RD, gu_R2F, weights_TK, gate_up, down, order_R, place_R, ends_E)
        ctx.save_for_backward(*kept)
        return weighted_sum(y_RD, place_R, weights_TK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, gu, weights_TK, gate_up, down, order_R, place_R, ends_E = ctx.saved_tensors
        K = weights_TK.shape[1]
        grad_RD = spread(grads[0], place_R, K)
        back_RF = grouped_product(grad_RD, down, ends_E)
        grad_gu, act_RF, grad_weights_TK = swiglu_backward(gu, back_RF, weights_TK, order_R)
        grad_gate_up = grad_down = None
        if ctx.needs_input_grad[3]:  # not where the experts are frozen
            grad_gate_up = grouped_outer(grad_gu, rows, ends_E).view(gate_up.shape)
        if ctx.needs_input_grad[4]:
            grad_down = grouped_outer(grad_RD, act_RF, ends_E)
        grad_rows = grouped_product(grad_gu, gate_up.flatten(1, 2), ends_E)
        grad_x = plain_sum(grad_rows, place_R, K)
        return grad_x, None, grad_weights_TK, grad_gate_up, grad_down


def _runs(name: str, rows: Tensor) -> bool:
    if not switch.runs(name, rows):
        return False
    from nalar.kernels.gpu.permute import DTYPES

    if rows.dtype not in DTYPES:
        switch.refuse(name, f"rows of {rows.dtype}")
    return rows.dtype in DTYPES


def _spread_shape(x_TD: Tensor, place_R: Tensor, times: int) -> Tensor:
    return x_TD.new_empty(place_R.shape[0], x_TD.shape[1])


@opaque(_spread_shape)
def spread(x_TD: Tensor, place_R: Tensor, times: int) -> Tensor:
    """Each token's row at the places of its choices, as many as `times`: [R, D]. place: int32."""
    if _runs("spread_choices", x_TD):
        from nalar.kernels.gpu import permute

        return permute.spread(x_TD.contiguous(), place_R, times)
    out_RD = x_TD.new_empty(place_R.shape[0], x_TD.shape[1])
    out_RD[place_R.long()] = x_TD.repeat_interleave(times, 0, output_size=len(place_R))
    return out_RD


def _swiglu_shape(gate_up_R2F: Tensor) -> Tensor:
    return gate_up_R2F.new_empty(gate_up_R2F.shape[0], gate_up_R2F.shape[1] // 2)


@opaque(_swiglu_shape)
def swiglu(gate_up_R2F: Tensor) -> Tensor:
    """silu(gate) * up, [R, F]."""
    if _runs("swiglu", gate_up_R2F):
        from nalar.kernels.gpu import permute

        return permute.swiglu(gate_up_R2F)
    gate, up = gate_up_R2F.chunk(2, dim=-1)
    return F.silu(gate) * up


def _swiglu_backward_shapes(
    gate_up_R2F: Tensor, back_RF: Tensor, weights_TK: Tensor, order_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (gate_up_R2F, back_RF, weights_TK)
    grad, act, grad_weights = (x.new_empty(x.shape) for x in inputs)
    return grad, act, grad_weights


@opaque(_swiglu_backward_shapes)
def swiglu_backward(
    gate_up_R2F: Tensor, back_RF: Tensor, weights_TK: Tensor, order_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of gate and up [R, 2F], weight times activation [R, F], gradient of the weights [T, K].

    back: gradient of each row's activation, but for the weight. order: int32, which choice is at each row.
    """
    if _runs("swiglu", gate_up_R2F):
        from nalar.kernels.gpu import permute

        return permute.swiglu_backward(gate_up_R2F, back_RF, weights_TK.contiguous(), order_R)
    weight_R1 = weights_TK.flatten().index_select(0, order_R)[:, None]
    gate, up = gate_up_R2F.chunk(2, dim=-1)
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    act = silu * up
    grad_weights = torch.empty_like(weights_TK, memory_format=torch.contiguous_format)
    grad_weights.view(-1)[order_R.long()] = (back_RF * act).sum(-1).to(grad_weights.dtype)
    grad_act = (back_RF * weight_R1).to(back_RF.dtype)
    grad_gate = grad_act * up * (sigmoid + silu * (1 - sigmoid))
    weighted = (act * weight_R1).to(back_RF.dtype)
    return torch.cat([grad_gate, grad_act * silu], -1), weighted, grad_weights


def _weighted_sum_shape(y_RD: Tensor, place_R: Tensor, weights_TK: Tensor) -> Tensor:
    return y_RD.new_empty(weights_TK.shape[0], y_RD.shape[1])


@opaque(_weighted_sum_shape)
def weighted_sum(y_RD: Tensor, place_R: Tensor, weights_TK: Tensor) -> Tensor:
    """Each token's rows times their weights, added up: [T, D]. place: int32, the row of each choice."""
    T, K = weights_TK.shape
    if _runs("sum_choices", y_RD):
        from nalar.kernels.gpu import permute

        return permute.sum_choices(y_RD, place_R, weights_TK.contiguous(), K)
    y_TKD = y_RD.index_select(0, place_R).view(T, K, y_RD.shape[1])
    return torch.bmm(weights_TK[:, None].to(y_RD.dtype), y_TKD).squeeze(1)


def _plain_sum_shape(y_RD: Tensor, place_R: Tensor, times: int) -> Tensor:
    return y_RD.new_empty(y_RD.shape[0] // times, y_RD.shape[1])


@opaque(_plain_sum_shape)
def plain_sum(y_RD: Tensor, place_R: Tensor, times: int) -> Tensor:
    """Each token's rows, as many as `times`, added up: [T, D]."""
    if _runs("sum_choices", y_RD):
        from nalar.kernels.gpu import permute

        return permute.sum_choices(y_RD, place_R, None, times)
    out: Tensor = y_RD.index_select(0, place_R).unflatten(0, (-1, times)).sum(1)
    return out
