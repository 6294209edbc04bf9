"""Experts over many rows as a GPU computes them: kernels under Triton's interpreter, grouped products of torch's."""

import pytest
import torch
from torch.testing import assert_close

from nalar.kernels import switch
from nalar.kernels.experts import experts, experts_reference
from nalar.kernels.grouped import grouped_outer, grouped_product, order, sort_routes
from nalar.kernels.routed import RoutedExperts, plain_sum, swiglu, swiglu_backward, weighted_sum

permute = pytest.importorskip("nalar.kernels.gpu.permute")
KERNELS = ("routed_experts", "route_sort", "swiglu", "spread_choices", "sum_choices")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """What a kernel does not write is not a number, or no number of a row."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(out):
        return out.fill_(torch.nan if out.dtype.is_floating_point else 2**30)

    monkeypatch.setattr(permute.torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(permute.torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


def ids_of(T: int, E: int, K: int, routing: str) -> torch.Tensor:
    gen = torch.Generator().manual_seed(T)
    if routing == "all the same":
        return torch.tensor([E - 1, *range(K - 1)]).expand(T, K)
    if routing == "half of them empty":
        return 2 * torch.rand(T, E // 2, generator=gen).topk(K).indices + 1
    return torch.rand(T, E, generator=gen).topk(K).indices


def case(T, E, K, routing, D=16, F=8):
    gen = torch.Generator().manual_seed(T)
    rand = lambda *shape: torch.randn(*shape, generator=gen).requires_grad_()  # noqa: E731
    return rand(T, D), ids_of(T, E, K, routing), rand(T, K), rand(E, 2, F, D), rand(E, D, F)


ROUTINGS = ("random", "all the same", "half of them empty")


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("T", "E", "K"), [(1, 6, 2), (37, 6, 2), (50, 12, 5)])
def test_output_and_gradients_are_those_of_the_loop(T, E, K, routing, kernels):
    """With kernels, and with the plain forms in their place; experts that nobody chose have gradients of 0."""
    x, ids, w, gate_up, down = case(T, E, K, routing)
    inputs = (x, w, gate_up, down)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    want = experts_reference(x.double(), ids, w.double(), gate_up.double(), down.double())
    theirs = torch.autograd.grad(want, inputs, upstream.double())
    with switch.forced("routed_experts"), switch.forced(*KERNELS[1:], on=kernels):
        ours = experts(x, ids, w, gate_up, down)
        mine = torch.autograd.grad(ours, inputs, upstream)
    assert_close(ours, want.float(), rtol=1e-5, atol=1e-6 * float(want.detach().abs().max()))
    for a, b in zip(mine, theirs, strict=True):
        assert_close(a, b.float(), rtol=1e-4, atol=2e-5 * float(b.abs().max()))


def test_widths_of_no_whole_16_bytes_go_expert_by_expert():
    x, ids, w, gate_up, down = case(9, 4, 2, "random", D=10, F=7)
    with switch.forced(*KERNELS):
        ours = experts(x, ids, w, gate_up, down)
        mine = torch.autograd.grad(ours.sum(), (x, gate_up, down))  # an expanded gradient
    theirs = torch.autograd.grad(
        experts_reference(x, ids, w, gate_up, down).sum(), (x, gate_up, down)
    )
    for a, b in zip(mine, theirs, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("chunk", "cells"), [(1024, 8192), (64, 128), (128, 8192)])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_choices_are_sorted_as_argsort_does(routing, chunk, cells, monkeypatch):
    monkeypatch.setattr(permute, "SORTED", chunk)
    monkeypatch.setattr(permute, "CELLS", cells)
    for T, E, K in ((1, 5, 2), (210, 12, 5), (77, 34, 3)):
        ids = ids_of(T, E, K, routing)
        with switch.forced("route_sort"):
            *rows, ends = sort_routes(ids, E)
        for ours, plain in zip(rows, order(ids)[:2], strict=True):
            assert torch.equal(ours.long(), plain)
        assert torch.equal(ends.long(), torch.bincount(ids.flatten(), minlength=E).cumsum(0))
        assert {t.dtype for t in (*rows, ends)} == {torch.int32}


def test_half_precision_rounds_once():
    """Kernels compute in float32: what they give is the exact result, rounded to the dtype, or its neighbour."""
    gen = torch.Generator().manual_seed(0)
    R, K, width = 21, 3, 40
    gu = torch.randn(R, 2 * width, generator=gen).to(torch.bfloat16)
    back = torch.randn(R, width, generator=gen).to(torch.bfloat16)
    weights = torch.rand(R // K, K, generator=gen)
    ids = ids_of(R // K, 6, K, "random")
    order_R, place_R, _ = sort_routes(ids, 6)
    wide = [gu.double(), back.double(), weights.double()]
    calls = [
        lambda gu, back, w: (swiglu(gu),),
        lambda gu, back, w: swiglu_backward(gu, back, w, order_R),
        lambda gu, back, w: (weighted_sum(back, place_R, w), plain_sum(back, place_R, K)),
    ]
    for call in calls:
        with switch.forced(*KERNELS):
            ours = call(gu, back, weights)
        for a, b in zip(ours, call(*wide), strict=True):
            assert a.dtype in (torch.bfloat16, torch.float32)
            assert_close(a.double(), b, rtol=2.0**-7, atol=1e-5)


def test_compiled_code_gives_what_uncompiled_code_gives(monkeypatch):
    """One graph: operations whose insides a compiler does not look at, with shapes it can know."""
    monkeypatch.undo()
    x, ids, w, gate_up, down = case(12, 6, 2, "random")
    call = torch.compile(RoutedExperts.apply, backend="aot_eager", fullgraph=True)
    for compute in (call, RoutedExperts.apply):
        out = compute(x, ids, w, gate_up, down)
        grads = torch.autograd.grad(out.square().sum(), (x, w, gate_up, down))
        if compute is call:
            compiled = (out, *grads)
    for a, b in zip(compiled, (out, *grads), strict=True):
        assert_close(a, b)


def test_a_grouped_product_of_no_rows_for_an_expert_is_0():
    rows, ends = torch.randn(6, 8), torch.tensor([0, 4, 4, 6, 6], dtype=torch.int32)
    weight = torch.randn(5, 8, 4)
    outer = grouped_outer(rows, rows, ends)
    for e, (a, b) in enumerate(zip([0, 0, 4, 4, 6], ends.tolist(), strict=True)):
        assert_close(grouped_product(rows, weight, ends)[a:b], rows[a:b] @ weight[e])
        assert_close(outer[e], rows[a:b].T @ rows[a:b])
