import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from nalar.kernels import switch
from nalar.kernels.head import head_logits


@pytest.fixture
def products(monkeypatch):
    """Stands in for the GPU's product, which a CPU has not; holds the shapes of what it was given."""
    seen = []

    def mm(a, b, *, out_dtype):
        seen.append((tuple(a.shape), tuple(b.shape), b.data_ptr()))
        return a.to(out_dtype) @ b.to(out_dtype)

    monkeypatch.setattr(torch, "mm", mm)
    return seen


@pytest.mark.parametrize("scaling", [1.0, 6.0])
@pytest.mark.parametrize("shape", [(3, 8), (8,), (2, 3, 8)])
def test_logits_are_fp32_products_of_what_16_bits_hold(products, shape, scaling):
    states, head = torch.randn(shape).bfloat16(), torch.randn(5, 8).bfloat16()
    expected = F.linear(states.float() / scaling, head.float())
    assert torch.equal(head_logits(states, head, scaling), expected) and not products
    with switch.forced("head"):
        found = head_logits(states, head, scaling)
    assert found.dtype == torch.float32 and found.shape == (*shape[:-1], 5)
    assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert [seen[2] for seen in products] == [head.data_ptr()]  # the head itself, not a copy


def test_gradients_and_fp32_go_the_plain_way(products):
    states, head = torch.randn(3, 8), torch.randn(5, 8)
    with switch.forced("head"):
        head_logits(states, head)
        trained = head.bfloat16().requires_grad_()
        head_logits(states.bfloat16(), trained).sum().backward()
        assert not products and trained.grad is not None
        with torch.no_grad():
            head_logits(states.bfloat16(), trained)
    assert len(products) == 1
