import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from nalar.kernels import switch
from nalar.kernels.norm import add_rms_norm, rms_norm


@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12), (12,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_the_norm_of_torch_and_so_is_its_derivative(shape, dtype):
    gen = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=gen)).to(dtype).requires_grad_()
    weight = torch.rand(12, generator=gen).to(dtype).requires_grad_()
    upstream = torch.randn(shape, generator=gen).to(dtype)
    ours, theirs = rms_norm(x, weight, 1e-6), F.rms_norm(x, (12,), weight, 1e-6)
    assert ours.dtype == dtype
    assert_close(ours, theirs)
    for got, want in zip(
        torch.autograd.grad(ours, (x, weight), upstream),
        torch.autograd.grad(theirs, (x, weight), upstream),
        strict=True,
    ):
        assert_close(got, want, rtol=2e-5, atol=2e-6) if dtype != torch.bfloat16 else None


def test_eps_keeps_zeros_finite():
    x = torch.zeros(3, 4, requires_grad=True)
    out = rms_norm(x, torch.ones(4), 1e-6)
    (grad,) = torch.autograd.grad(out, x, torch.ones(3, 4))
    assert torch.equal(out, torch.zeros(3, 4))
    assert_close(grad, torch.full((3, 4), 1e3))


def test_a_slice_of_a_wider_tensor_is_normed_as_its_copy():
    wide = torch.randn(5, 20)
    weight = torch.rand(12)
    assert_close(
        rms_norm(wide[:, 4:16], weight, 1e-6), rms_norm(wide[:, 4:16].clone(), weight, 1e-6)
    )


@pytest.mark.parametrize(("shape", "width"), [((5, 12), 12), ((1, 1024), 1024), ((3, 2, 9), 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_the_kernel_is_the_plain_norm_and_sum(shape, width, dtype, scale):
    """Of slices of wider rows too; nothing is left unwritten, and what it adds is rounded as torch rounds it."""
    pytest.importorskip("triton")
    gen = torch.Generator().manual_seed(0)
    x, y = ((3 * torch.randn(shape, generator=gen)).to(dtype)[..., -width:] for _ in range(2))
    weight = torch.rand(width, generator=gen).to(dtype)
    with torch.no_grad():
        expected = rms_norm(x, weight, 1e-5)
        total, expected_after = add_rms_norm(x, y, weight, 1e-5, scale=scale)
        torch.use_deterministic_algorithms(True)  # which fills what is empty with NaN
        try:
            with switch.forced("rms_norm"):
                got = rms_norm(x, weight, 1e-5)
                got_total, got_after = add_rms_norm(x, y, weight, 1e-5, scale=scale)
        finally:
            torch.use_deterministic_algorithms(False)
    assert torch.equal(got_total, total)
    for one, other in ((got, expected), (got_after, expected_after)):
        assert one.dtype == dtype and one.shape == x.shape
        assert_close(one, other)


@pytest.mark.parametrize("x", [torch.ones(2, 8193), torch.ones(2, 8, dtype=torch.float64)])
def test_rows_that_the_kernel_does_not_take_are_normed_without_it(x):
    pytest.importorskip("triton")
    weight = torch.ones(x.shape[1], dtype=x.dtype)
    with torch.no_grad(), switch.forced("rms_norm"):
        assert_close(rms_norm(x, weight, 0.0), x)


def test_the_kernel_knows_no_gradient_and_is_not_asked_for_one():
    pytest.importorskip("triton")
    x, weight = torch.ones(2, 4, requires_grad=True), torch.ones(4)
    with switch.forced("rms_norm"):
        total, out = add_rms_norm(x, x, weight, 1e-6)
        assert total.requires_grad and out.requires_grad and rms_norm(x, weight, 0.0).requires_grad
