"""Experts of few rows as kernels, under Triton's interpreter: right whatever the routing, and every number written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from nalar.kernels import switch
from nalar.kernels.experts import Dense, dense, experts_reference, infer_experts

gpu = pytest.importorskip("nalar.kernels.gpu.experts")
lines = pytest.importorskip("nalar.kernels.gpu.expert_lines")

pytestmark = pytest.mark.few(1)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """What a kernel does not write is not a number, or no number of a row."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(torch.nan if out.dtype.is_floating_point else 2**30)

    monkeypatch.setattr(gpu.torch, "empty", poisoned)
    for name in ("UP_LINES", "DOWN_LINES"):  # fewer programs: the interpreter runs them one by one
        monkeypatch.setattr(lines, name, lines.Lines(16, 32, 4))


def case(T, D, E, K, F_, S=1, ids=None, dtype=torch.float32):
    gen = torch.Generator().manual_seed(T + E)
    rand = lambda *shape, by=1.0: (torch.randn(*shape, generator=gen) * by).to(DEVICE, dtype)  # noqa: E731
    if ids is None:
        ids = torch.rand(T, E, generator=gen).topk(K).indices
    ids, weights = ids.to(DEVICE), torch.rand(T, K, generator=gen).to(DEVICE)
    shared = None
    if S:
        shared = Dense(rand(S * F_, D, by=0.2), rand(S * F_, D, by=0.2), rand(D, S * F_, by=0.2))
    gate_up, down = rand(E, 2, F_, D, by=0.2), rand(E, D, F_, by=0.2)
    return rand(T, D), ids, weights, gate_up, down, shared


def expected(x, ids, weights, gate_up, down, shared):
    out = experts_reference(x.double(), ids, *(t.double() for t in (weights, gate_up, down)))
    return out if shared is None else out + dense(x.double(), Dense(*(t.double() for t in shared)))


ROUTINGS = {
    "one token": (1, 5, None),
    "some": (7, 6, None),
    "all to the same two": (21, 6, torch.tensor([[4, 1]] * 21)),
    "all but one expert empty for first choices": (
        19,
        40,
        torch.stack([torch.full((19,), 39), torch.arange(19)], 1),
    ),
    "more rows than a block": (40, 3, None),
    "more experts than rows": (3, 90, None),
}


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("unsorted", [True, False])
@pytest.mark.parametrize("S", [0, 2])
def test_each_form_gives_what_the_loop_gives(name, unsorted, S, monkeypatch):
    T, E, ids = ROUTINGS[name]
    monkeypatch.setattr(gpu, "UNSORTED", 10**6 if unsorted else 0)
    args = case(T, 40, E, 2, 24, S, ids)
    with switch.forced("few_row_experts"):
        out = infer_experts(*args)
    assert_close(out, expected(*args).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unsorted", [True, False])
def test_half_precision_stays_within_the_stated_bound(unsorted, monkeypatch):
    T = 5 if unsorted else 33  # unsorted, each row's choices are programs of their own
    monkeypatch.setattr(gpu, "UNSORTED", 10**6 if unsorted else 0)
    x, ids, weights, gate_up, down, shared = args = case(T, 40, 5, 2, 24, dtype=torch.float16)
    with switch.forced("few_row_experts"):
        out = infer_experts(*args)
    sizes = torch.zeros(T, 40, dtype=torch.float64, device=DEVICE)
    for c in range(2):
        gate, up = torch.einsum("td,tgfd->gtf", x.double(), gate_up[ids[:, c]].double())
        act = (F.silu(gate) * up).abs()
        sizes += weights[:, c, None] * torch.einsum(
            "tf,tdf->td", act, down[ids[:, c]].double().abs()
        )
    gate, up, into = (t.double() for t in shared)
    sizes += (F.silu(x.double() @ gate.T) * (x.double() @ up.T)).abs() @ into.abs().T
    want, u = expected(*args), 2.0**-11
    assert ((out.double() - want).abs() <= 2.1 * u * sizes + u * want.abs() + 1e-6).all()


def test_the_same_rows_give_the_same_bits_again_and_from_strided_rows(monkeypatch):
    monkeypatch.setattr(gpu, "UNSORTED", 0)
    x, *rest = case(9, 40, 6, 2, 24)
    with switch.forced("few_row_experts"):
        first = infer_experts(x, *rest)
        again = infer_experts(torch.cat([x, x], 1)[:, :40], *rest)
    assert torch.equal(first, again)


def test_launches_do_not_depend_on_the_routing(monkeypatch):
    """A graph replays its grids whatever the ids are: blocks suffice for the worst of them."""
    for E, T, K in ((4, 64, 2), (32, 64, 4), (3, 1, 3)):
        M = gpu.block_rows(T, K, E)
        skewed = torch.arange(K).expand(T, K).contiguous()
        spread = (torch.arange(T)[:, None] * K + torch.arange(K)) % E
        shapes = set()
        for ids in (skewed, spread):
            order, blocks = (x.cpu() for x in gpu.blocks_of(ids.to(DEVICE), E, M))
            shapes.add((order.shape, blocks.shape))
            flat = ids.flatten()
            assert torch.equal(order.long(), flat.argsort(stable=True))
            rows = [r for e, a, b in blocks.tolist() for r in range(a, b) if flat[order[r]] == e]
            assert rows == list(range(T * K))
            assert all(b - a <= M for _, a, b in blocks.tolist())
        assert len(shapes) == 1


@pytest.mark.parametrize(("T", "width"), [(1, 72), (5, 64), (20, 128), (3, 40)])
def test_a_dense_layer_of_few_rows(T, width):
    """Two products of lines, or tiles in two parts, four, one."""
    x, *_, shared = case(T, 40, 2, 1, width)
    with switch.forced("few_row_dense"), torch.no_grad():
        out = dense(x, shared)
    assert out.shape == x.shape
    assert_close(out, dense(x, shared), rtol=1e-5, atol=1e-5)


def test_what_kernels_do_not_take_goes_the_plain_way():
    x, ids, weights, gate_up, down, shared = case(5, 40, 4, 2, 24)
    plain = infer_experts(x, ids, weights, gate_up, down, shared)
    turned = down.transpose(1, 2).contiguous().transpose(1, 2)
    odd = Dense(shared.gate_WD[:10], shared.up_WD[:10], shared.down_DW[:, :10].contiguous())
    with switch.forced("few_row_experts"):
        assert torch.equal(infer_experts(x, ids, weights, gate_up, turned, shared), plain)
        assert gpu.why_not(x, gate_up, down, odd) is not None
        assert gpu.why_not(x.double(), gate_up, down, shared) is not None


def test_no_rows_give_no_rows():
    x, ids, weights, gate_up, down, shared = case(4, 40, 4, 2, 24)
    with switch.forced("few_row_experts", "few_row_dense"), torch.no_grad():
        assert infer_experts(x[:0], ids[:0], weights[:0], gate_up, down, shared).shape == (0, 40)
        assert dense(x[:0], shared).shape == (0, 40)


@pytest.mark.slow
def test_kernels_compile_for_hopper_and_fit(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("hopper_experts.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kernels = {tuple(line.split()) for line in done.stdout.splitlines()}
    assert {name for name, *_ in kernels} == {
        *("_up_lines", "_down_lines", "_sort_rows", "_up_tiles", "_down_tiles", "_add_choices"),
        *("_route", "_count_kernel", "_scan_kernel", "_place_kernel", "_spread_kernel"),
        *("_swiglu_kernel", "_swiglu_backward_kernel", "_sum_kernel"),
    }
    for name, shared, _registers, spilled in kernels:
        assert int(shared) <= 227 * 1024 and int(spilled) == 0, (name, shared, spilled)
