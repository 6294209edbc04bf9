import pytest
import torch

from nalar.kernels import switch
from nalar.kernels.linear import linear, linears

pytest.importorskip("triton")


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize(("width", "outs"), [(1024, (48, 20)), (40, (17,)), (300, (33, 1))])
def test_few_rows_times_one_matrix_or_two(rows, width, outs):
    torch.manual_seed(0)
    x = torch.randn(rows, 2 * width)[:, :width]
    weights = [torch.randn(n, width + 3)[:, :width] / width**0.5 for n in outs]
    want = [x.double() @ w.double().T for w in weights]
    with torch.no_grad(), switch.forced("few_row_linear"):
        found = linears(x, *weights)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_what_it_does_not_take_is_computed_by_torch():
    weight, bias = torch.randn(5, 8), torch.randn(5)
    calls = (
        lambda: linear(torch.ones(17, 8), weight),
        lambda: linear(torch.ones(2, 8), weight, bias),
        lambda: linear(torch.ones(2, 8, requires_grad=True), weight),
        lambda: linear(torch.ones(2, 8), weight.clone().requires_grad_()),
        lambda: linear(torch.ones(2, 2, 8), weight),
        lambda: linear(torch.ones(0, 8), weight),
    )
    want = [call() for call in calls]
    with switch.forced("few_row_linear"):
        found = [call() for call in calls]
    assert all(a.shape == b.shape for a, b in zip(found, want, strict=True))
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b)
    assert found[2].requires_grad and found[3].requires_grad
