"""Logits of a router: in float32 whatever the numbers are kept in, forward and backward."""

import torch
from torch.testing import assert_close

from nalar.kernels.router import BFloat16Logits, best_experts, router_logits


def test_bfloat16_logits_and_their_gradients_are_those_of_float32():
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(50, 24, generator=gen).to(torch.bfloat16).requires_grad_()
    weight = torch.randn(6, 24, generator=gen).to(torch.bfloat16).requires_grad_()
    upstream = torch.randn(50, 6, generator=gen)
    exact = x.double() @ weight.double().T
    want = torch.autograd.grad(exact, (x, weight), upstream.double())
    for compute in (BFloat16Logits.apply, router_logits):
        logits = compute(x, weight)
        assert logits.dtype == torch.float32
        assert_close(logits.double(), exact, rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(
            torch.autograd.grad(logits, (x, weight), upstream), want, strict=True
        ):
            # Both are rounded to bfloat16 at the end: they may differ in the last place, not more.
            assert_close(ours, theirs, rtol=2.0**-7, atol=1e-6)


def test_the_gradient_keeps_16_bits_of_what_comes_from_above():
    """1 + 2^-12 is 1 in bfloat16; its difference from 1 must not be lost where much cancels."""
    x = torch.ones(2, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(1, 8, dtype=torch.bfloat16, requires_grad=True)
    logits = BFloat16Logits.apply(x, weight)
    (grad,) = torch.autograd.grad(logits, weight, torch.tensor([[1 + 2.0**-12], [-1.0]]))
    assert_close(grad.float(), torch.full((1, 8), 2.0**-12))


def test_compiled_logits_are_one_graph():
    x = torch.randn(5, 8).to(torch.bfloat16).requires_grad_()
    weight = torch.randn(3, 8).to(torch.bfloat16).requires_grad_()
    compiled = torch.compile(BFloat16Logits.apply, backend="aot_eager", fullgraph=True)
    ours, theirs = compiled(x, weight), BFloat16Logits.apply(x, weight)
    assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), (x, weight)),
        torch.autograd.grad(theirs.square().sum(), (x, weight)),
        strict=True,
    ):
        assert_close(a, b)


def test_the_best_experts_are_those_of_the_best_groups():
    merits = torch.tensor([[1.0, 0.9, 0.8, 1.1, 3.0, -9.0]])
    assert set(best_experts(merits, 3, 1, 1)[0].tolist()) == {0, 3, 4}
    assert set(best_experts(merits, 3, 3, 2)[0].tolist()) == {0, 1, 3}
