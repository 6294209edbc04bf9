import pytest
import torch
from torch.testing import assert_close

from nalar.kernels import logprobs, switch
from nalar.kernels.logprobs import logprob_sum, token_logprobs, token_logprobs_reference


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


def rounded_case(tokens, vocab, device="cpu", dtype=torch.float32):
    gen = torch.Generator().manual_seed(tokens * 1000 + vocab)
    states = torch.randn(tokens, 16, generator=gen).to(device, dtype).requires_grad_()
    head = (2 * torch.randn(vocab, 16, generator=gen)).to(device, dtype).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,), generator=gen).to(device)
    return states, head, targets, torch.randn(tokens, generator=gen).to(device)


@pytest.fixture(params=["plain", "kernel"])
def as_on_a_gpu(request, monkeypatch):
    """bfloat16's path, which needs a GPU for the dtype alone: with the kernel and without."""
    monkeypatch.setattr(logprobs, "is_rounded", lambda states, head: True)
    with switch.forced("token_logprobs", on=request.param == "kernel"):
        yield


@pytest.mark.few(9)
@pytest.mark.parametrize("chunk", [7, 64])
@pytest.mark.parametrize(
    ("tokens", "vocab", "scaling"), [(20, 33, 6.0), (3, 5000, 1.0), (1, 1, 1.0), (0, 5, 1.0)]
)
def test_the_path_of_gpus_gives_the_same(as_on_a_gpu, device, tokens, vocab, scaling, chunk):
    states, head, targets, upstream = rounded_case(tokens, vocab, device)
    expected, expected_entropy = token_logprobs_reference(
        states, head, targets, logits_scaling=scaling
    )
    theirs = torch.autograd.grad(expected, (states, head), upstream)
    for entropy in (True, False):
        ours, entropies = token_logprobs(
            *(states, head, targets),
            logits_scaling=scaling,
            chunk_tokens=chunk,
            entropy=entropy,
        )
        assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        assert_close(
            entropies, expected_entropy if entropy else entropies[:0], rtol=1e-4, atol=1e-5
        )
        for a, b in zip(torch.autograd.grad(ours, (states, head), upstream), theirs, strict=True):
            assert_close(a, b, rtol=1e-4, atol=1e-5)
    total = logprob_sum(states, head, targets, upstream, logits_scaling=scaling, chunk_tokens=chunk)
    assert_close(total, (upstream * expected).sum(), rtol=1e-5, atol=1e-4)
    for a, b in zip(torch.autograd.grad(2 * total, (states, head)), theirs, strict=True):
        assert_close(a, 2 * b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("path", ["plain", "as on a GPU"])
@pytest.mark.parametrize(("tokens", "vocab", "scaling"), [(20, 33, 6.0), (3, 500, 1.0)])
def test_an_entropy_that_learns_has_the_gradient_of_autograd(
    monkeypatch, path, tokens, vocab, scaling
):
    monkeypatch.setattr(logprobs, "is_rounded", lambda states, head: path != "plain")
    states, head, targets, upstream = rounded_case(tokens, vocab)
    more = torch.linspace(-1, 2, tokens)
    found = []
    for compute, options in (
        (token_logprobs_reference, {}),
        (token_logprobs, {"entropy_learns": True, "chunk_tokens": 7}),
        (token_logprobs, {"entropy_learns": True, "chunk_tokens": 64}),
    ):
        values, entropies = compute(states, head, targets, logits_scaling=scaling, **options)
        total = (upstream * values).sum() + (more * entropies).sum()
        found.append(torch.autograd.grad(total, (states, head)))
    for ours in found[1:]:
        for a, b in zip(ours, found[0], strict=True):
            assert_close(
                a, b, rtol=1e-3, atol=2e-4
            )  # log-sum-exp less a mean: logits near 20 cancel
    _, silent = token_logprobs(states, head, targets)
    assert not silent.requires_grad


def test_a_sum_of_log_probabilities_is_that_of_token_logprobs_everywhere():
    states, head, targets, weights = rounded_case(9, 12)
    total = logprob_sum(states, head, targets, weights)
    assert torch.equal(total, (weights * token_logprobs(states, head, targets)[0]).sum())


def test_no_gradient_is_made_where_nobody_asks(as_on_a_gpu, device):
    states, head, targets, weights = rounded_case(9, 12, device)
    with torch.no_grad():
        total = logprob_sum(states, head, targets, weights)
    assert not total.requires_grad
    assert_close(total, (weights * token_logprobs_reference(states, head, targets)[0]).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_right_at_the_ends_of_numbers_and_written_whole(device, dtype):
    from nalar.kernels.gpu.logprobs import gradient, rows

    logits = torch.randn(6, 4100, generator=torch.Generator().manual_seed(0))
    logits[0, 4097] = 1e4  # one id takes all
    logits[1] = -1e4
    logits[2, :4000] = -torch.inf
    logits[3, 7] = torch.nan
    logits[4] *= 100
    targets = torch.tensor([4097, 0, 4099, 5, 4095, 4096])
    weights = torch.tensor([1.0, -2.0, 0.5, 1.0, 0.0, 3.0])
    logits, targets, weights = (x.to(device) for x in (logits, targets, weights))
    logprob, lse, entropy, grad = rows(
        logits, targets, 2.0, entropy=True, weights_T=weights, grad_dtype=dtype
    )
    scaled = (logits / 2).double()
    expected = scaled.log_softmax(-1)
    ok = [0, 1, 2, 4, 5]
    assert logprob[3].isnan() and lse[3].isnan() and grad[3].isnan().all()
    assert_close(
        logprob[ok].double(), expected.gather(1, targets[:, None])[ok, 0], rtol=1e-5, atol=1e-3
    )
    assert_close(lse[ok].double(), scaled.logsumexp(-1)[ok], rtol=1e-6, atol=1e-5)
    certain = [0, 1, 4, 5]
    assert_close(
        entropy[certain].double(),
        -(expected.exp() * expected).sum(-1)[certain],
        rtol=1e-3,
        atol=2e-3,
    )
    onehot = torch.zeros_like(expected).scatter_(1, targets[:, None], 1.0)
    wanted = (onehot - expected.exp()) * weights[:, None] / 2
    rtol = 1e-4 if dtype == torch.float32 else 1e-2
    assert_close(grad[ok].double(), wanted[ok], rtol=rtol, atol=1e-5)
    assert torch.equal(gradient(logits, targets, weights, lse, 2.0, dtype)[ok], grad[ok])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kernel", [True, False])
def test_bfloat16_on_a_gpu_is_near_fp32(kernel):
    states, head, targets, weights = rounded_case(300, 1000, dtype=torch.bfloat16)
    on_gpu = [x.detach().cuda().requires_grad_() for x in (states, head)]
    wide = [x.detach().float().requires_grad_() for x in (states, head)]
    expected, _ = token_logprobs_reference(*wide, targets)
    theirs = torch.autograd.grad(expected, wide, weights)
    with switch.forced("token_logprobs", on=kernel):
        ours, _ = token_logprobs(*on_gpu, targets.cuda(), chunk_tokens=128)
        mine = torch.autograd.grad(ours, on_gpu, weights.cuda())
        total = logprob_sum(*on_gpu, targets.cuda(), weights.cuda(), chunk_tokens=128)
        again = torch.autograd.grad(total, on_gpu)
    assert_close(ours.cpu(), expected, rtol=1e-4, atol=1e-3)
    for a, b, c in zip(mine, again, theirs, strict=True):
        assert_close(a.float().cpu(), c, rtol=3e-2, atol=3e-2)
        assert_close(b.float().cpu(), c, rtol=3e-2, atol=3e-2)
