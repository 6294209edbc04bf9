import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from nalar.kernels.norm import rms_norm


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
