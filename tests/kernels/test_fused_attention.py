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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", [(16, 16, 96, 64), (16, 8, 64, 64), (16, 8, 128, 128)])
@pytest.mark.parametrize("lengths", [[256] * 4, [300, 77, 1, 290, 64]])
def test_kernels_of_a_gpu_agree_with_attention_written_out(kind, lengths):
    documents = Documents.of(lengths, device="cuda")
    qkv, grad = heads(documents, kind, device="cuda", dtype=torch.bfloat16)
    out, bound, grads = attended(qkv, grad, documents, "bound")
    wide = [x.detach().double().float().requires_grad_() for x in qkv]
    expected, exact, expected_grads = attended(wide, grad.float(), documents, "exact")
    assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    for got, want in zip(grads, expected_grads, strict=True):
        assert_close(got.float(), want, rtol=4e-2, atol=4e-2)
    assert (bound >= exact - 0.05).all()
