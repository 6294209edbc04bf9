import pytest
import torch
from torch.testing import assert_close

from nalar.kernels import experts as module
from nalar.kernels import switch
from nalar.kernels.experts import every_expert, experts, experts_reference, infer_experts


def case(T: int, E: int, K: int, only: int | None = None):
    gen = torch.Generator().manual_seed(T)
    rand = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64).requires_grad_()  # noqa: E731
    ids = torch.stack([torch.randperm(E, generator=gen)[:K] for _ in range(T)])
    if only is not None:
        ids = torch.tensor([[only, (only + 1) % E]] * T)
    return rand(T, 5), ids, rand(T, K), rand(E, 2, 7, 5), rand(E, 5, 7)


def test_sorted_experts_equal_the_loop_over_experts():
    for T, only in ((40, None), (3, None), (1, None), (6, 2)):  # few rows leave experts empty
        x, ids, w, gate_up, down = case(T, E=4, K=2, only=only)
        ours, loop = experts(x, ids, w, gate_up, down), experts_reference(x, ids, w, gate_up, down)
        assert_close(ours, loop)
        upstream = torch.randn(ours.shape, dtype=torch.float64)
        mine = torch.autograd.grad(ours, (x, w, gate_up, down), upstream)
        theirs = torch.autograd.grad(loop, (x, w, gate_up, down), upstream)
        for a, b in zip(mine, theirs, strict=True):
            assert_close(a, b)


def test_one_expert_by_hand():
    """D = F = 1: out = w * down * silu(gate*x) * (up*x), with x = 2, gate = 1, up = 3, down = 5, w = 1/2."""
    x = torch.tensor([[2.0]])
    gate_up, down = torch.tensor([[[[1.0]], [[3.0]]]]), torch.tensor([[[5.0]]])
    out = experts(x, torch.tensor([[0]]), torch.tensor([[0.5]]), gate_up, down)
    silu = 2.0 / (1.0 + torch.e**-2.0)
    assert_close(out, torch.tensor([[0.5 * 5.0 * silu * 6.0]]))


@pytest.mark.parametrize("tokens", [1, 40, 41, 300])
@pytest.mark.parametrize("width", [48, 30])
def test_inference_gives_what_the_loop_gives_in_each_of_its_forms(tokens, width):
    """Every expert for few tokens, grouped products for many, the loop where rows are no whole 16 bytes."""
    gen = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 64, generator=gen)
    ids = torch.rand(tokens, 8, generator=gen)[:, :5].topk(2).indices  # three experts stay empty
    weights = torch.rand(tokens, 2, generator=gen)
    gate_up = torch.randn(8, 2, width, 64, generator=gen) / 8
    down = torch.randn(8, 64, width, generator=gen) / 8
    expected = experts_reference(x, ids, weights, gate_up, down)
    for compute in (infer_experts, every_expert):
        assert_close(compute(x, ids, weights, gate_up, down), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tokens", "waits"), [(1, False), (512, False), (513, True)])
def test_where_a_gpu_has_no_grouped_product_few_rows_wait_for_nobody(monkeypatch, tokens, waits):
    """Of these a recorded step may be; sorted rows that go expert by expert ask the host for their numbers."""
    x, ids = torch.randn(tokens, 6), torch.arange(2).expand(tokens, 2)
    weights, gate_up, down = torch.rand(tokens, 2), torch.randn(4, 2, 5, 6), torch.randn(4, 6, 5)
    expected = experts_reference(x, ids, weights, gate_up, down)
    asked = []
    by_expert = module.experts
    monkeypatch.setattr(module, "experts", lambda *given: asked.append(1) or by_expert(*given))
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    names = ("few_row_experts", "route_sort", "spread_choices", "swiglu", "sum_choices")
    with switch.forced(*names, on=False):
        out = infer_experts(x, ids, weights, gate_up, down)
    assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert bool(asked) == waits
