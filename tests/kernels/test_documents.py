import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from nalar.kernels.attention import causal_attention, document_attention
from nalar.kernels.documents import Documents

lengths_of_a_batch = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(deadline=None)
@given(lengths_of_a_batch)
def test_spreading_and_joining_gives_the_batch_back(lengths):
    documents, total = Documents.of(lengths), sum(lengths)
    x = torch.randn(total, 3, requires_grad=True)
    sides = documents.spread(x)
    assert [tuple(side.shape[:2]) for side in sides] == list(documents.sides)
    assert torch.equal(documents.join(sides), x)
    weight = torch.randn(total, 3)
    (documents.join(sides) * weight).sum().backward()
    assert torch.equal(x.grad, weight)


@settings(deadline=None)
@given(lengths_of_a_batch)
def test_each_row_of_a_side_is_one_document_and_then_its_last_token(lengths):
    documents = Documents.of(lengths)
    marks = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    assert documents.positions_N.tolist() == [t for n in lengths for t in range(n)]
    seen = []
    pairs = zip(documents.spread(marks), documents.spread(documents.positions_N), strict=True)
    for marks_BT, places_BT in pairs:
        for row, places in zip(marks_BT.tolist(), places_BT.tolist(), strict=True):
            assert len(set(row)) == 1
            own = lengths[row[0]]
            assert places == [min(t, own - 1) for t in range(len(row))]
            seen.append(row[0])
    assert sorted(seen) == list(range(len(lengths)))


def test_documents_of_like_length_share_a_side():
    documents = Documents.of([10, 100, 9, 8, 95])
    assert documents.sides == ((2, 100), (3, 10))


@pytest.mark.parametrize("observe", ["nothing", "bound", "exact"])
def test_attention_is_that_of_each_document_alone(observe):
    torch.manual_seed(0)
    lengths, heads, width = [5, 17, 1, 16, 30, 3], 2, 8
    q, k, v = (torch.randn(sum(lengths), heads, width, requires_grad=True) for _ in range(3))
    out, seen = document_attention(q, k, v, Documents.of(lengths), scale=0.4, observe=observe)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum(), (q, k, v))

    outs, logits = [], []
    for part in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        alone, observed = causal_attention(
            *(x.transpose(0, 1)[None] for x in part), scale=0.4, observe=observe
        )
        outs.append(alone[0].transpose(0, 1))
        logits.append(observed)
    expected = torch.cat(outs)
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    assert_close(out, expected, rtol=1e-5, atol=1e-6)
    for got, want in zip(grads, wanted, strict=True):
        assert_close(got, want, rtol=1e-4, atol=1e-5)
    if observe == "nothing":
        assert seen is None
    elif observe == "exact":
        assert_close(seen, torch.stack(logits).amax(0))
    else:  # repeated keys in padding may raise the bound, never lower it
        assert (seen >= torch.stack(logits).amax(0) - 1e-5).all()


def test_rows_need_no_gather():
    documents = Documents.rows(3, 4)
    x = torch.randn(12, 2)
    (side,) = documents.spread(x)
    assert side.data_ptr() == x.data_ptr()
    assert torch.equal(documents.join([side]), x)


@settings(deadline=None)
@given(lengths_of_a_batch)
def test_tails_are_what_follows_the_first_tokens(lengths):
    documents, kept = Documents.of(lengths).tails()
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    expected = [s + t for s, n in zip(starts, lengths, strict=True) for t in range(1, n)]
    assert kept.tolist() == expected
    assert documents.lengths == tuple(n - 1 for n in lengths if n > 1)
    assert documents.positions_N.tolist() == [t for n in documents.lengths for t in range(n)]


def test_tails_of_rows_are_rows():
    documents, kept = Documents.rows(2, 3).tails()
    assert documents.sides == ((2, 2),) and documents.slots_S is None
    assert kept.tolist() == [1, 2, 4, 5]
    documents, kept = Documents.rows(2, 1).tails()
    assert documents.lengths == () and kept.shape == (0,)
    assert documents.tails()[0].count == 0
