import pytest
import torch
from torch.testing import assert_close

from nalar.kernels.logprobs import token_logprobs, token_logprobs_reference


@pytest.mark.parametrize("scaling", [1.0, 6.0])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_do_not_change_logprobs_entropy_or_gradients(chunk, scaling):
    gen = torch.Generator().manual_seed(0)
    states = torch.randn(50, 16, generator=gen).requires_grad_()
    head = torch.randn(33, 16, generator=gen).requires_grad_()
    targets = torch.randint(0, 33, (50,), generator=gen)
    upstream = torch.randn(50, generator=gen)
    ours, entropy = token_logprobs(
        states, head, targets, logits_scaling=scaling, chunk_tokens=chunk
    )
    expected, expected_entropy = token_logprobs_reference(
        states, head, targets, logits_scaling=scaling
    )
    assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert_close(entropy, expected_entropy, rtol=1e-5, atol=1e-5)
    mine = torch.autograd.grad(ours, (states, head), upstream)
    theirs = torch.autograd.grad(expected, (states, head), upstream)
    for a, b in zip(mine, theirs, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_without_entropy_the_log_probabilities_are_the_same():
    states, head = torch.randn(20, 6, requires_grad=True), torch.randn(9, 6, requires_grad=True)
    targets = torch.arange(20) % 9
    found = []
    for entropy in (True, False):
        logprobs, entropies = token_logprobs(states, head, targets, chunk_tokens=7, entropy=entropy)
        assert len(entropies) == (20 if entropy else 0)
        found.append((logprobs, *torch.autograd.grad(logprobs.sum(), (states, head))))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
