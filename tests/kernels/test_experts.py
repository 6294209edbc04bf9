import torch
from torch.testing import assert_close

from nalar.kernels.experts import experts, experts_reference


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
