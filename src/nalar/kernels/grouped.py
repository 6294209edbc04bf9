"""Products of rows that are sorted by expert with each expert's own matrix, and the sorting."""

# T tokens · K experts per token · E experts · R = T*K routed rows · A and B widths

import torch
from torch import Tensor

from nalar.kernels import switch
from nalar.kernels.opaque import opaque


class NeedsHost(RuntimeError):
    """The host must see a number before it can go on, so this cannot be recorded as a CUDA graph."""


def can_group(rows_RA: Tensor, *widths: int) -> bool:
    """torch's grouped product wants rows of whole 16 bytes, on a GPU bfloat16 and a Hopper chip or later."""
    if not hasattr(torch, "_grouped_mm") or any(n * rows_RA.dtype.itemsize % 16 for n in widths):
        return False
    if rows_RA.device.type == "cuda":
        capability = torch.cuda.get_device_capability(rows_RA.device)
        return rows_RA.dtype == torch.bfloat16 and capability[0] >= 9
    return rows_RA.dtype in (torch.float32, torch.bfloat16)


def count(ids_TK: Tensor, num_experts: int) -> Tensor:
    """How often each number below that comes, such as tokens sent to each expert: int64 [E]. Unlike bincount it has a
    shape that nobody waits for.
    """
    ids_R = ids_TK.flatten()
    return ids_R.new_zeros(num_experts).scatter_add_(0, ids_R, torch.ones_like(ids_R))


def order(ids_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows sorted by expert: which choice is at each row, the row of each choice, the token at each row; all [R]."""
    order_R = ids_TK.flatten().argsort(stable=True)
    rows_R = torch.arange(ids_TK.numel(), device=ids_TK.device)
    place_R = torch.empty_like(order_R).scatter_(0, order_R, rows_R)
    return order_R, place_R, order_R // ids_TK.shape[1]


def _sort_routes_shapes(ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (ids_TK.numel(), ids_TK.numel(), num_experts)
    order_R, place_R, ends_E = (ids_TK.new_empty(n, dtype=torch.int32) for n in sizes)
    return order_R, place_R, ends_E


@opaque(_sort_routes_shapes)
def sort_routes(ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Order and place as of `order`, in int32 [R], and where each expert's rows end, int32 [E]."""
    if switch.runs("route_sort", ids_TK):
        from nalar.kernels.gpu import permute

        return permute.sort_routes(ids_TK.contiguous(), num_experts)
    order_R, place_R, _ = order(ids_TK)
    ends_E = count(ids_TK, num_experts).cumsum(0, dtype=torch.int32)
    return order_R.int(), place_R.int(), ends_E


def _on_host(sizes_E: Tensor) -> list[int]:
    if sizes_E.is_cuda and torch.cuda.is_current_stream_capturing():
        # Before CUDA says so: a recording that it broke off would leave its traces in torch's allocator.
        raise NeedsHost("torch has no grouped product for these experts here")
    sizes: list[int] = sizes_E.tolist()
    return sizes


def _sizes(ends_E: Tensor) -> Tensor:
    return ends_E.diff(prepend=ends_E.new_zeros(1))


def _grouped_product_shape(rows_RA: Tensor, weight_EAB: Tensor, ends_E: Tensor) -> Tensor:
    return rows_RA.new_empty(rows_RA.shape[0], weight_EAB.shape[2])


@opaque(_grouped_product_shape)
def grouped_product(rows_RA: Tensor, weight_EAB: Tensor, ends_E: Tensor) -> Tensor:
    """Each row times its expert's matrix, [R, B]; where torch has a grouped product, nobody waits for it."""
    if can_group(rows_RA, *weight_EAB.shape[1:]):
        out: Tensor = torch._grouped_mm(rows_RA, weight_EAB, offs=ends_E)
        return out
    return by_expert(rows_RA, _sizes(ends_E), weight_EAB.transpose(1, 2))


def _leaves_empty_ones(x: Tensor) -> bool:
    """Whether an expert without rows gets whatever was in memory: after Hopper (pytorch issue 172439)."""
    return x.device.type == "cuda" and torch.cuda.get_device_capability(x.device)[0] > 9


def _grouped_outer_shape(left_RB: Tensor, right_RA: Tensor, ends_E: Tensor) -> Tensor:
    return left_RB.new_empty(ends_E.shape[0], left_RB.shape[1], right_RA.shape[1])


@opaque(_grouped_outer_shape)
def grouped_outer(left_RB: Tensor, right_RA: Tensor, ends_E: Tensor) -> Tensor:
    """left^T @ right over each expert's own rows, [E, B, A]: 0 where it has none."""
    if can_group(left_RB, left_RB.shape[1], right_RA.shape[1]):
        out: Tensor = torch._grouped_mm(left_RB.T, right_RA, offs=ends_E)
        if _leaves_empty_ones(left_RB):
            out.masked_fill_((_sizes(ends_E) == 0)[:, None, None], 0.0)
        return out
    return weight_grad(left_RB, right_RA, _sizes(ends_E))


def _by_expert_shape(rows_RA: Tensor, sizes_E: Tensor, weight_EBA: Tensor) -> Tensor:
    return rows_RA.new_empty(rows_RA.shape[0], weight_EBA.shape[1])


@opaque(_by_expert_shape)
def by_expert(rows_RA: Tensor, sizes_E: Tensor, weight_EBA: Tensor) -> Tensor:
    """Rows times each expert's weight, transposed: [R, B]."""
    out = rows_RA.new_empty(len(rows_RA), weight_EBA.shape[1])
    sizes = _on_host(sizes_E)
    parts = (rows_RA.split(sizes), weight_EBA.transpose(1, 2).unbind(), out.split(sizes))
    for rows, weight_AB, result in zip(*parts, strict=True):
        torch.mm(rows, weight_AB, out=result)
    return out


def _weight_grad_shape(grad_RB: Tensor, rows_RA: Tensor, sizes_E: Tensor) -> Tensor:
    return rows_RA.new_empty(sizes_E.shape[0], grad_RB.shape[1], rows_RA.shape[1])


@opaque(_weight_grad_shape)
def weight_grad(grad_RB: Tensor, rows_RA: Tensor, sizes_E: Tensor) -> Tensor:
    """For each expert grad^T @ rows over its own rows: [E, B, A]."""
    out = rows_RA.new_empty(len(sizes_E), grad_RB.shape[1], rows_RA.shape[1])
    sizes = _on_host(sizes_E)
    parts = (grad_RB.T.split(sizes, 1), rows_RA.split(sizes), out.unbind())
    for grad_BR, rows, result in zip(*parts, strict=True):
        torch.mm(grad_BR, rows, out=result)
    return out
