import pytest
import torch
from torch.testing import assert_close

from nalar.kernels.attention import (
    KEY_TILE,
    absorbed_attention,
    chunk_attention,
    document_attention,
    grouped_attention,
    max_logit,
    tiled_attention,
)
from nalar.kernels.documents import Documents
from nalar.kernels.paging import Chunk

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


@pytest.mark.parametrize(("queries", "tiled"), [(1, False), (3, False), (1, True)])
def test_queries_over_cached_keys_and_values_equal_softmax_written_out(queries, tiled):
    """Deterministic attention in more than one tile of keys, the last of them not full."""
    B, T = 3, KEY_TILE + 11
    q = normal(B, queries, HEADS, WIDTH)
    k, v = normal(B, T, GROUPS, WIDTH, seed=1), normal(B, T, GROUPS, WIDTH, seed=2)
    hidden = torch.zeros(B, queries, T)
    for row, length in enumerate((4, T, KEY_TILE)):
        for i in range(queries):
            hidden[row, i, max(length - i, 1) :] = -torch.inf
    if tiled:
        got = tiled_attention(q[:, 0], k, v, hidden[:, 0], scale=0.3)[:, None]
    else:
        got = grouped_attention(q, k, v, hidden, scale=0.3)
    for head in range(HEADS):
        group = head // (HEADS // GROUPS)
        scores = torch.einsum("bqk,btk->bqt", q[:, :, head], k[:, :, group]) * 0.3 + hidden
        expected = torch.einsum("bqt,btk->bqk", scores.softmax(-1), v[:, :, group])
        assert_close(got[:, :, head], expected, rtol=1e-5, atol=1e-6)


def test_a_row_gets_the_same_bits_however_many_keys_others_have():
    q, k, v = normal(4, HEADS, WIDTH), normal(4, 5, GROUPS, WIDTH), normal(4, 5, GROUPS, WIDTH)
    hidden = torch.zeros(4, 5)
    expected = tiled_attention(q, k, v, hidden, scale=0.3)
    for more in (1, KEY_TILE, 3 * KEY_TILE + 1):
        longer = [torch.nn.functional.pad(x, (0, 0, 0, 0, 0, more), value=3.0) for x in (k, v)]
        unseen = torch.nn.functional.pad(hidden, (0, more), value=-torch.inf)
        assert torch.equal(tiled_attention(q, *longer, unseen, scale=0.3), expected)


def test_a_chunk_behind_others_is_the_end_of_the_whole():
    q, k, v = normal(20, HEADS, WIDTH), normal(20, GROUPS, WIDTH), normal(20, GROUPS, WIDTH)
    whole, _ = document_attention(q, k, v, Documents.rows(1, 20), scale=0.3)
    for chunk in (1, 7, 20):
        assert_close(chunk_attention(q[-chunk:], k, v, scale=0.3), whole[-chunk:])


def test_absorbed_attention_of_a_chunk_mixes_the_latents_that_each_query_sees():
    tokens, seen, latent = 5, 17, 6
    q_QHC, seen_TC = normal(tokens, HEADS, WIDTH), normal(seen, WIDTH, seed=1)
    chunk = Chunk(tokens, seen, torch.zeros(1, dtype=torch.int64))
    mixed = absorbed_attention(q_QHC, seen_TC, chunk.hidden_QT, latent_dim=latent, scale=0.3)
    for i in range(tokens):
        keys_TC = seen_TC[: seen - tokens + i + 1]
        weights_HT = (q_QHC[i] @ keys_TC.T * 0.3).softmax(-1)
        assert_close(mixed[i], weights_HT @ keys_TC[:, :latent])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_largest_logits_are_as_exact_as_float32_whatever_was_multiplied(device, dtype):
    """QK-Clip divides by them: one that is rounded to 8 bits leaves a head off its cap."""
    q, k = (normal(2, 3, 40, 64, seed=i).to(dtype) for i in (0, 1))
    logits = q.double() @ k.double().mT * 3.0
    wanted = logits.masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf).amax((0, 2, 3))
    found = max_logit(q.to(device), k.to(device), scale=3.0, chunk=16)
    assert found.dtype == torch.float32
    assert_close(found.cpu().double(), wanted, rtol=1e-6, atol=0)
