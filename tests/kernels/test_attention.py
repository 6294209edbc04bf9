import pytest
import torch
from torch.testing import assert_close

from nalar.kernels.attention import document_attention, grouped_attention
from nalar.kernels.documents import Documents

HEADS, GROUPS, WIDTH = 6, 2, 8


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("observe", ["nothing", "bound", "exact"])
@pytest.mark.parametrize("value_width", [WIDTH, 5])
def test_shared_keys_and_values_are_as_if_every_head_had_its_own(observe, value_width):
    documents = Documents.of([7, 3, 12])
    q = normal(22, HEADS, WIDTH)
    k, v = normal(22, GROUPS, WIDTH, seed=1), normal(22, GROUPS, value_width, seed=2)
    own = [x.repeat_interleave(HEADS // GROUPS, 1).requires_grad_() for x in (k, v)]
    shared = [x.requires_grad_() for x in (k, v)]
    got, got_logits = document_attention(q, *shared, documents, scale=0.3, observe=observe)
    expected, logits = document_attention(q, *own, documents, scale=0.3, observe=observe)
    assert_close(got, expected)
    if observe == "nothing":
        assert got_logits is None
    else:
        assert_close(got_logits, logits)
    upstream = normal(*got.shape, seed=3)
    for a, b in zip(
        torch.autograd.grad(got, shared, upstream),
        torch.autograd.grad(expected, own, upstream),
        strict=True,
    ):
        assert_close(a, b.unflatten(1, (GROUPS, -1)).sum(2), rtol=1e-5, atol=1e-6)


def test_one_query_over_cached_keys_and_values_equals_softmax_written_out():
    B, T = 3, 11
    q, cache = normal(B, HEADS, WIDTH), normal(B, T, 2 * GROUPS * WIDTH, seed=1)
    hidden = torch.zeros(B, T)
    for row, length in enumerate((4, 11, 1)):
        hidden[row, length:] = -torch.inf
    got = grouped_attention(q, cache, hidden, kv_heads=GROUPS, scale=0.3)
    for head in range(HEADS):
        at = head // (HEADS // GROUPS) * WIDTH
        k, v = cache[..., at : at + WIDTH], cache[..., at + GROUPS * WIDTH :][..., :WIDTH]
        weights = (torch.einsum("bk,btk->bt", q[:, head], k) * 0.3 + hidden).softmax(-1)
        assert_close(got[:, head], torch.einsum("bt,btk->bk", weights, v), rtol=1e-5, atol=1e-6)
