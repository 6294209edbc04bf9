"""Experts over many rows as a GPU computes them: kernels under Triton's interpreter, grouped products of torch's."""

import pytest
import torch
from torch.testing import assert_close

from nalar.kernels import grouped, switch
from nalar.kernels.experts import experts, experts_reference
from nalar.kernels.grouped import grouped_outer, grouped_product, order, sort_routes
from nalar.kernels.routed import RoutedExperts, plain_sum, swiglu, swiglu_backward, weighted_sum

permute = pytest.importorskip("nalar.kernels.gpu.permute")

pytestmark = pytest.mark.few(2)
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


def case(T, E, K, routing, D=16, F=8, device="cpu"):
    gen = torch.Generator().manual_seed(T)
    rand = lambda *shape: torch.randn(*shape, generator=gen).to(device).requires_grad_()  # noqa: E731
    ids = ids_of(T, E, K, routing).to(device)
    return rand(T, D), ids, rand(T, K), rand(E, 2, F, D), rand(E, D, F)


ROUTINGS = ("random", "all the same", "half of them empty")


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("T", "E", "K"), [(1, 6, 2), (37, 6, 2), (50, 12, 5)])
def test_output_and_gradients_are_those_of_the_loop(device, T, E, K, routing, kernels):
    """With kernels, and with the plain forms in their place; experts that nobody chose have gradients of 0."""
    x, ids, w, gate_up, down = case(T, E, K, routing, device=device)
    inputs = (x, w, gate_up, down)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).to(device)
    want = experts_reference(x.double(), ids, w.double(), gate_up.double(), down.double())
    theirs = torch.autograd.grad(want, inputs, upstream.double())
    with switch.forced("routed_experts"), switch.forced(*KERNELS[1:], on=kernels):
        ours = experts(x, ids, w, gate_up, down)
        mine = torch.autograd.grad(ours, inputs, upstream)
    assert_close(ours, want.float(), rtol=1e-5, atol=1e-6 * float(want.detach().abs().max()))
    for a, b in zip(mine, theirs, strict=True):
        assert_close(a, b.float(), rtol=1e-4, atol=2e-5 * float(b.abs().max()))


def test_widths_of_no_whole_16_bytes_go_expert_by_expert(device):
    x, ids, w, gate_up, down = case(9, 4, 2, "random", D=10, F=7, device=device)
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
def test_choices_are_sorted_as_argsort_does(device, routing, chunk, cells, monkeypatch):
    monkeypatch.setattr(permute, "SORTED", chunk)
    monkeypatch.setattr(permute, "CELLS", cells)
    for T, E, K in ((1, 5, 2), (210, 12, 5), (77, 34, 3)):
        ids = ids_of(T, E, K, routing).to(device)
        with switch.forced("route_sort"):
            *rows, ends = sort_routes(ids, E)
        for ours, plain in zip(rows, order(ids)[:2], strict=True):
            assert torch.equal(ours.long(), plain)
        assert torch.equal(ends.long(), torch.bincount(ids.flatten(), minlength=E).cumsum(0))
        assert {t.dtype for t in (*rows, ends)} == {torch.int32}


def test_half_precision_rounds_once(device):
    """Kernels compute in float32: what they give is the exact result, rounded to the dtype, or its neighbour."""
    gen = torch.Generator().manual_seed(0)
    R, K, width = 21, 3, 40
    gu = torch.randn(R, 2 * width, generator=gen).to(torch.bfloat16)
    back = torch.randn(R, width, generator=gen).to(torch.bfloat16)
    weights = torch.rand(R // K, K, generator=gen)
    gu, back, weights = (x.to(device) for x in (gu, back, weights))
    ids = ids_of(R // K, 6, K, "random").to(device)
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


def test_compiled_code_gives_what_uncompiled_code_gives(device, monkeypatch):
    """One graph: operations whose insides a compiler does not look at, with shapes it can know."""
    monkeypatch.undo()
    x, ids, w, gate_up, down = case(12, 6, 2, "random", device=device)
    call = torch.compile(RoutedExperts.apply, backend="aot_eager", fullgraph=True)
    for compute in (call, RoutedExperts.apply):
        out = compute(x, ids, w, gate_up, down)
        grads = torch.autograd.grad(out.square().sum(), (x, w, gate_up, down))
        if compute is call:
            compiled = (out, *grads)
    for a, b in zip(compiled, (out, *grads), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_grouped_product_of_no_rows_for_an_expert_is_0(device, dtype):
    rows, weight = (torch.randn(shape).to(device, dtype) for shape in ((6, 8), (5, 8, 8)))
    ends = torch.tensor([0, 4, 4, 6, 6], dtype=torch.int32, device=device)
    outer = grouped_outer(rows, rows, ends)
    for e, (a, b) in enumerate(zip([0, 0, 4, 4, 6], ends.tolist(), strict=True)):
        assert_close(grouped_product(rows, weight, ends)[a:b], rows[a:b] @ weight[e])
        assert_close(outer[e], rows[a:b].T @ rows[a:b])


def test_what_a_grouped_product_leaves_of_an_expert_without_rows_is_not_taken(monkeypatch):
    def careless(left, right, *, offs):
        out = torch.full((len(offs), len(left), right.shape[1]), torch.nan)
        out[[0, 3]] = 7.0
        return out

    monkeypatch.setattr(torch, "_grouped_mm", careless)
    monkeypatch.setattr(grouped, "_leaves_empty_ones", lambda x: True)
    ends = torch.tensor([4, 4, 4, 6], dtype=torch.int32)
    outer = grouped_outer(torch.randn(6, 8), torch.randn(6, 8), ends)
    assert outer.amax((1, 2)).tolist() == outer.amin((1, 2)).tolist() == [7, 0, 0, 7]


@pytest.mark.parametrize("kernels", [True, False])
def test_no_tokens_have_gradients_of_0(device, kernels):
    x, ids, w, gate_up, down = case(3, 6, 2, "random", device=device)
    with switch.forced("routed_experts"), switch.forced(*KERNELS[1:], on=kernels):
        out = experts(x[:0], ids[:0], w[:0], gate_up, down)
        grads = torch.autograd.grad(out.sum(), (x, w, gate_up, down))
    assert out.shape == (0, 16)
    assert all(not grad.any() for grad in grads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_experts_in_bfloat16_repeat_to_the_bit_and_are_near_float64():
    """As a model trains them: rows of whole 16 bytes, an expert without a token."""
    gen = torch.Generator().manual_seed(0)
    shapes = ((700, 64), (700, 2), (8, 2, 32, 64), (8, 64, 32))
    inputs = [torch.randn(shape, generator=gen).bfloat16().cuda() for shape in shapes]
    inputs[1] = inputs[1].float()
    inputs = [x.requires_grad_() for x in inputs]
    x, w, gate_up, down = inputs
    ids = ids_of(700, 8, 2, "half of them empty").cuda()
    upstream = torch.randn(700, 64, generator=gen).bfloat16().cuda()
    wide = [x.detach().double().requires_grad_() for x in inputs]
    want = experts_reference(wide[0], ids, *wide[1:])
    theirs = (want.detach(), *torch.autograd.grad(want, wide, upstream.double()))
    runs = []
    with switch.forced(*KERNELS):
        for _ in range(3):
            out = experts(x, ids, w, gate_up, down)
            runs.append((out.detach(), *torch.autograd.grad(out, inputs, upstream)))
    for first, *others, exact in zip(*runs, theirs, strict=True):
        assert all(torch.equal(first, other) for other in others)
        assert (first.double() - exact).norm() < 2.0**-6 * exact.norm()
