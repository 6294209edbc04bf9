"""A product with a matrix that an adapter is folded into: values of that matrix, gradients of the adapter."""

import pytest
import torch
from torch.testing import assert_close

from nalar.kernels.adapted import adapted_linear, adapted_reference, folded
from nalar.kernels.linear import linear

ROWS, IN, OUT, RANK, SCALING = 7, 5, 6, 2, 1.5


@pytest.fixture
def parts():
    """x, base, A, B and the gradient of what comes out."""
    gen = torch.Generator().manual_seed(0)
    shapes = ((ROWS, IN), (OUT, IN), (RANK, IN), (OUT, RANK), (ROWS, OUT))
    return [torch.randn(shape, generator=gen) for shape in shapes]


def test_values_are_those_of_the_folded_weight_to_the_bit(parts):
    x, base, down, up, _ = parts
    weight = folded(base, down, up, SCALING)
    bias = torch.arange(OUT, dtype=torch.float32)
    for given in (None, bias):
        out = adapted_linear(x, weight, given, down, up, SCALING)
        assert torch.equal(out, linear(x, weight, given))
    assert_close(weight, base + SCALING * up @ down)


def test_folding_on_numbers_one_can_do_on_paper():
    base = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    down, up = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [0.5]])
    assert folded(base, down, up, 2.0).tolist() == [[5.0, -2.0], [4.0, 3.0]]


@pytest.mark.parametrize("x_learns", [True, False])
def test_gradients_are_autograds_through_base_and_adapter(parts, x_learns):
    x, base, down, up, grad = parts
    found = []
    for is_reference in (True, False):
        leaves = [
            x.clone().requires_grad_(x_learns),
            *(p.clone().requires_grad_() for p in (down, up)),
        ]
        if is_reference:
            out = adapted_reference(leaves[0], base, leaves[1], leaves[2], SCALING)
        else:
            weight = folded(base, down, up, SCALING)
            out = adapted_linear(leaves[0], weight, None, leaves[1], leaves[2], SCALING)
        out.backward(grad)
        found.append([leaf.grad for leaf in leaves])
    for want, got in zip(*found, strict=True):
        assert (want is None) == (got is None)
        if want is not None:
            assert_close(got, want)
    assert found[0][1].abs().max() > 0.1 and found[0][2].abs().max() > 0.1


def test_rows_of_several_axes_are_rows(parts):
    x, base, down, up, grad = parts
    flat, deep = (p.clone().requires_grad_() for p in (down, down))
    adapted_linear(x[:6], base, None, flat, up, SCALING).backward(grad[:6])
    adapted_linear(x[:6].view(2, 3, IN), base, None, deep, up, SCALING).backward(
        grad[:6].view(2, 3, OUT)
    )
    assert_close(deep.grad, flat.grad)


def test_a_rounded_weight_has_adapters_that_are_not(parts):
    """In bfloat16 the sum is rounded once; gradients of A and B come in float32."""
    x, base, down, up, grad = parts
    small = folded(base.bfloat16(), down, up, SCALING)
    assert small.dtype == torch.bfloat16
    assert torch.equal(small, (base.bfloat16().float() + SCALING * (up @ down)).bfloat16())
    leaves = [p.clone().requires_grad_() for p in (down, up)]
    adapted_linear(x.bfloat16(), small, None, *leaves, SCALING).backward(grad.bfloat16())
    wide = [p.clone().requires_grad_() for p in (down, up)]
    adapted_reference(x, base, *wide, SCALING).backward(grad)
    for got, want in zip(leaves, wide, strict=True):
        assert got.grad.dtype == torch.float32
        assert_close(got.grad, want.grad, rtol=0.05, atol=0.1)
