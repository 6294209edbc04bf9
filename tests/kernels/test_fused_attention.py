"""The path of GPUs with attention written out in the place of their kernels; the kernels where there are some."""

import pytest
import torch
from torch.testing import assert_close

from nalar.kernels import attention, fused_attention
from nalar.kernels.attention import document_attention
from nalar.kernels.documents import Documents

KINDS = [(6, 2, 8, 8), (4, 4, 24, 16), (2, 1, 16, 8)]


def heads(documents, kind, *, device="cpu", dtype=torch.float32):
    H, G, K, W = kind
    gen = torch.Generator().manual_seed(0)
    n = len(documents.positions_N)
    shapes = ((n, H, K), (n, G, K), (n, G, W), (n, H, W))
    *qkv, grad = (torch.randn(s, generator=gen).to(device, dtype) for s in shapes)
    return [x.requires_grad_() for x in qkv], grad


def attended(qkv, grad, documents, observe):
    out, seen = document_attention(*qkv, documents, scale=0.3, observe=observe)
    return out, seen, torch.autograd.grad(out, qkv, grad)


@pytest.mark.parametrize("documents", [Documents.of([5, 17, 1, 16, 30, 3]), Documents.rows(3, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_path_of_gpus_is_attention_and_its_bound_holds(documents, kind, monkeypatch):
    qkv, grad = heads(documents, kind)
    expected, exact, expected_grads = attended(qkv, grad, documents, "exact")
    monkeypatch.setattr(attention, "_is_on_cpu", lambda x: False)
    monkeypatch.setattr(attention, "can_fuse", lambda q, v: True)
    out, bound, grads = attended(qkv, grad, documents, "bound")
    assert_close(out, expected)
    for got, want in zip(grads, expected_grads, strict=True):
        assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert (bound >= exact - 1e-5).all()
    longest = max(documents.lengths)
    assert (bound <= exact + torch.tensor(float(longest)).log() + 1e-5).all()


def test_kernels_get_rows_that_begin_at_16_bytes(monkeypatch):
    """Values behind 12 columns of a wider product: 24 bytes in, where a GPU's kernel would fail to read."""
    documents, plain = Documents.rows(2, 8), fused_attention.PLAIN
    (q, k, _), grad = heads(documents, (2, 2, 16, 16), dtype=torch.bfloat16)
    v = torch.randn(16, 2, 28).bfloat16()[..., 12:].requires_grad_()
    expected = attended((q, k, v), grad, documents, "nothing")

    def seen(*tensors):
        for x in tensors:
            assert x.data_ptr() % 16 == 0 and all(n % 8 == 0 for n in x.stride()[:-1])

    def forward(q, k, v, scale):
        seen(q, k, v)
        return plain.forward(q, k, v, scale)

    def backward(*args):
        seen(*args[:5])
        return plain.backward(*args)

    monkeypatch.setattr(attention, "_is_on_cpu", lambda x: False)
    monkeypatch.setattr(attention, "can_fuse", lambda q, v: True)
    picky = fused_attention.Backend("picky", forward, backward)
    monkeypatch.setattr(attention, "backend_for", lambda *_: picky)
    out, _, grads = attended((q, k, v), grad, documents, "nothing")
    assert_close(out, expected[0], rtol=2e-2, atol=2e-2)
    for got, want in zip(grads, expected[2], strict=True):
        assert_close(got, want, rtol=4e-2, atol=4e-2)


@pytest.mark.parametrize("to", [(16, 8), (16, 16), (32, 32)])
def test_columns_of_zeros_change_nothing(to):
    (q, k, v), grad = heads(Documents.rows(2, 12), (4, 2, 16, 8))
    q, k, v, grad = (x.detach().unflatten(0, (2, 12)).transpose(1, 2) for x in (q, k, v, grad))
    backend, plain = fused_attention.widened(fused_attention.PLAIN, *to), fused_attention.PLAIN
    out, lse = backend.forward(q, k, v, 0.3)
    expected, expected_lse = plain.forward(q, k, v, 0.3)
    assert_close((out, lse), (expected, expected_lse))
    assert_close(
        backend.backward(grad, q, k, v, out, lse, 0.3),
        plain.backward(grad, q, k, v, expected, expected_lse, 0.3),
    )


def test_a_kernel_that_fails_or_errs_is_refused_and_the_next_one_taken(monkeypatch):
    def refuses(*_):
        raise RuntimeError("no engine\nfor this")

    def errs(q, k, v, scale):
        out, lse = fused_attention.PLAIN.forward(q, k, v, scale)
        return out, lse * 1.1

    def why_not(forward):
        backend = fused_attention.Backend("it", forward, fused_attention.PLAIN.backward)
        return fused_attention._why_not(
            backend, torch.device("cpu"), torch.bfloat16, *(4, 2, 16, 8)
        )

    assert why_not(refuses) == "no engine"
    assert "log-sum-exps" in why_not(errs)
    assert why_not(fused_attention.PLAIN.forward) is None


def misses(found, wanted):
    """Root mean square and largest of the errors, as parts of the root mean square of what is wanted."""
    each = [
        (a.double().cpu() - b.detach()) / b.detach().square().mean().sqrt()
        for a, b in zip(found, wanted, strict=True)
    ]
    return [(float(e.square().mean().sqrt()), float(e.abs().max())) for e in each]


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", [(16, 16, 96, 64), (16, 8, 64, 64), (16, 8, 128, 128)])
@pytest.mark.parametrize("lengths", [[300, 77, 1, 290, 64], [256] * 4])
def test_bfloat16_is_as_near_to_float64_as_rounding_lets_it_and_as_torch_is(device, kind, lengths):
    """Weights are rounded to 8 bits before they are multiplied, and so is what comes out: 2**-9 twice or thrice over
    all numbers. Of single ones, sums in which much cancels, no more can be said than that torch errs as much."""
    qkv, grad = heads(Documents.of(lengths), kind, dtype=torch.bfloat16)
    exactly = [x.detach().double().requires_grad_() for x in qkv]
    wanted, exact, wanted_grads = attended(exactly, grad.double(), Documents.of(lengths), "exact")
    qkv = [x.detach().to(device).requires_grad_() for x in qkv]
    documents = Documents.of(lengths, device=device)
    out, bound, grads = attended(qkv, grad.to(device), documents, "bound")
    theirs, _, their_grads = attended(qkv, grad.to(device), documents, "exact")  # by torch's choice
    ours = misses((out.detach(), *grads), (wanted, *wanted_grads))
    others = misses((theirs.detach(), *their_grads), (wanted, *wanted_grads))
    for (rms, worst), (their_rms, their_worst) in zip(ours, others, strict=True):
        assert rms < 2.0**-7 and rms < 1.5 * their_rms
        assert worst < 0.25 and worst < 3 * their_worst
    assert (bound.cpu() >= exact.detach() - 1e-3).all()


@pytest.mark.parametrize(("exact", "name"), [(False, "cuDNN"), (True, "torch's flash")])
def test_one_order_of_sums_is_had_by_asking_torch_for_it(exact, name, monkeypatch):
    class OnGPU:
        is_cuda, device, dtype, shape = True, "cuda:7", torch.bfloat16, (2, 4, 256, 64)

    monkeypatch.setattr(fused_attention, "_why_not", lambda *_: None)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    torch.use_deterministic_algorithms(exact)
    try:
        backend = fused_attention.backend_for(OnGPU(), OnGPU(), OnGPU())
    finally:
        torch.use_deterministic_algorithms(False)
        fused_attention.choose.cache_clear()
    assert backend.name == name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", [(16, 16, 96, 64), (16, 8, 128, 128)])
def test_gradients_of_a_gpu_repeat_to_the_bit_where_that_is_asked_for(kind):
    documents = Documents.of([512] * 4, device="cuda")
    qkv, grad = heads(documents, kind, device="cuda", dtype=torch.bfloat16)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = [attended(qkv, grad, documents, "bound") for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for again in others:
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
        assert all(map(torch.equal, first[2], again[2]))
