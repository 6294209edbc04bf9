"""The balance loss of documents: what it is worth, and that it is added up in one order."""

import pytest
import torch
from torch.testing import assert_close

from nalar.kernels.balance import sequence_balance
from nalar.kernels.documents import Documents


def test_the_balance_loss_by_hand():
    """Two documents, two experts, one choice: shares of choices and of scores multiplied by hand."""
    scores = torch.tensor([[0.6, 0.2], [0.3, 0.1], [0.2, 0.6]], requires_grad=True)
    ids = torch.tensor([[0], [0], [1]])
    loss = sequence_balance(scores, ids, Documents.of([2, 1]))
    # both tokens of the first choose expert 0, with shares .75: 2 * 1 * .75; the second: 2 * 1 * .75
    assert float(loss.detach()) == pytest.approx((2 * 1.5 + 1 * 1.5) / 3)
    even = sequence_balance(torch.full((2, 2), 0.5), torch.tensor([[0], [1]]), Documents.of([2]))
    assert float(even) == pytest.approx(1.0)


def test_the_balance_loss_does_not_depend_on_packing():
    torch.manual_seed(0)
    scores, ids = torch.rand(12, 4), torch.rand(12, 4).topk(2).indices
    whole = sequence_balance(scores, ids, Documents.of([5, 4, 3]))
    parts = [
        sequence_balance(s, i, Documents.of([len(s)])) * len(s)
        for s, i in zip(scores.split([5, 4, 3]), ids.split([5, 4, 3]), strict=True)
    ]
    assert float(whole) == pytest.approx(float(sum(parts)) / 12)


@pytest.mark.parametrize("lengths", [[5, 4, 3], [4, 4, 4]])
def test_value_and_gradient_are_those_of_sums_written_out(device, lengths):
    torch.manual_seed(0)
    scores, ids = torch.rand(12, 5).double(), torch.rand(12, 5).topk(2).indices
    ours, plain = (x.clone().to(device).requires_grad_() for x in (scores, scores))
    found = sequence_balance(ours, ids.to(device), Documents.of(lengths, device=device))
    wanted = 0.0
    for share, chosen in zip(
        (plain / plain.sum(-1, keepdim=True)).split(lengths), ids.split(lengths), strict=True
    ):
        counts = torch.bincount(chosen.flatten(), minlength=5).to(device)
        wanted = wanted + (5 / 2 * counts * share.mean(0)).sum() / 12
    assert_close(found, wanted)
    found.backward()
    wanted.backward()
    assert_close(ours.grad, plain.grad)


def test_many_tokens_are_added_up_to_the_same_bits_again(device):
    """Atomic additions of floats on a GPU would come in another order each time."""
    torch.manual_seed(0)
    scores, ids = torch.rand(9000, 7).to(device), torch.rand(9000, 7).topk(3).indices.to(device)
    documents = Documents.of([4000, 4999, 1], device=device)
    each = {float(sequence_balance(scores, ids, documents)) for _ in range(20)}
    assert len(each) == 1
