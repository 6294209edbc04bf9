import pytest
import torch
from torch.testing import assert_close

from nalar.kernels import switch
from nalar.kernels.projections import projections


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("A", "widths"), [(12, [5]), (40, [16, 9]), (2050, [3, 8, 17])])
def test_the_kernel_gives_what_the_products_give(device, rows, A, widths, has_bias):
    pytest.importorskip("triton")
    x = normal(rows, A + 2).to(device)[:, 2:]
    layers = [
        (
            normal(B, A, seed=i).to(device) * A**-0.5,
            normal(B, seed=i).to(device) if has_bias else None,
        )
        for i, B in enumerate(widths)
    ]
    expected = projections(x, *layers)
    torch.use_deterministic_algorithms(True)  # which fills what is empty with NaN
    try:
        with switch.forced("projections"):
            got = projections(x, *layers)
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("x", "num_layers"), [(normal(5, 8), 1), (normal(2, 8), 4), (normal(8, 2).T, 1)]
)
def test_what_the_kernel_does_not_take_is_computed_without_it(device, x, num_layers):
    pytest.importorskip("triton")
    x, layers = x.to(device), [(normal(6, 8, seed=i).to(device), None) for i in range(num_layers)]
    expected = projections(x, *layers)
    with switch.forced("projections"):
        got = projections(x, *layers)
    assert all(map(torch.equal, got, expected))


def test_the_kernel_knows_no_gradient_and_is_not_asked_for_one():
    weight = normal(6, 8).requires_grad_()
    with switch.forced("projections"):
        assert projections(normal(2, 8), (weight, None))[0].requires_grad
