"""The updates of GPUs, with their kernels under Triton's interpreter and without, against those of CPUs."""

import math

import pytest
import torch

from nalar.kernels import switch, updates
from nalar.kernels.newton_schulz import A, B, C, orthogonalize, orthogonalize_in_place
from nalar.optim import lean as lean_module
from nalar.optim import muonclip
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip

pytestmark = pytest.mark.few(3)

CONFIG = OptimConfig(lr=0.02, adamw_lr=0.005, weight_decay=0.1, clip_grad_norm=0.1)
TRUNCATED = 2**-7


@pytest.fixture(params=["plain", "kernel"])
def lean(request, monkeypatch):
    """Makes optimizers as they are on a GPU, but with products in float32, so that they can be told from a CPU's."""
    monkeypatch.setattr(lean_module, "products_dtype", lambda x: torch.float32)

    def make(parameters, config=CONFIG):
        with monkeypatch.context() as patched:
            patched.setattr(muonclip, "_is_lean", lambda device: True)
            return MuonClip(parameters.items(), config)

    with switch.forced(updates.NAME, on=request.param == "kernel"):
        yield make


def run(tiny, parameters, optimizer, seeds, **changes):
    results = []
    for seed in seeds:
        tiny.set_gradients(parameters, seed)
        results.append(optimizer.step(**changes))
    return results


def close(one, other, **tolerance):
    torch.testing.assert_close(one.detach().cpu(), other.detach().cpu(), **tolerance)


def copied(parameters, device):
    return {n: torch.nn.Parameter(p.detach().to(device, copy=True)) for n, p in parameters.items()}


@pytest.mark.parametrize("name", ["muonclip", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_move_as_on_a_cpu(tiny, lean, device, name, dtype):
    config = CONFIG.model_copy(update={"name": name})
    ours, theirs = tiny.make(dtype=dtype, device=device), tiny.make(dtype=dtype)
    optimizer, flat = lean(ours, config), MuonClip(theirs.items(), config)
    found = run(tiny, ours, optimizer, range(3), lr_factor=0.5)
    expected = run(tiny, theirs, flat, range(3), lr_factor=0.5)
    for one, other in zip(found, expected, strict=True):
        close(one.norms, other.norms)
        close(one.grad_norm, other.grad_norm)
    state, wanted = optimizer.state_tensors(), flat.state_tensors()
    assert state.keys() == wanted.keys()
    for key in wanted:
        close(state[key], wanted[key], rtol=1e-5, atol=2e-6, msg=key)
    for key in tiny.shapes:
        close(optimizer.master(ours[key]), flat.master(theirs[key]))
        rounded = optimizer.master(ours[key]).to(dtype)
        # Triton's interpreter cuts where the device rounds.
        close(ours[key], rounded, rtol=0 if device.type == "cuda" else TRUNCATED, atol=0)


def test_without_nesterov_and_without_a_ceiling_on_the_norm_too(tiny, lean, device):
    config = CONFIG.model_copy(update={"nesterov": False, "clip_grad_norm": None})
    ours, theirs = tiny.make(device=device), tiny.make()
    run(tiny, ours, lean(ours, config), range(2))
    run(tiny, theirs, MuonClip(theirs.items(), config), range(2))
    for key in tiny.shapes:
        close(ours[key], theirs[key], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, "a spike"])
def test_a_step_that_does_not_count_leaves_no_trace(tiny, lean, device, bad):
    parameters = tiny.make(dtype=torch.bfloat16, device=device)
    optimizer = lean(parameters, CONFIG.model_copy(update={"spike_window": 2}))
    run(tiny, parameters, optimizer, [0, 3], loss=torch.ones((), device=device))
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    before = optimizer.state_tensors()
    tiny.set_gradients(parameters, 1)
    if bad != "a spike":
        for name in ("lm_head.weight", "model.layers.1.mlp.experts.down"):
            parameters[name].grad.view(-1)[3] = bad
    loss = torch.tensor(1000.0 if bad == "a spike" else 1.0, device=device)
    assert not optimizer.step(loss=loss).applied
    assert all(torch.equal(parameters[name], weights[name]) for name in tiny.shapes)
    after = optimizer.state_tensors()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert all(key.startswith("guard.") for key in changed)
    run(tiny, parameters, optimizer, [2])
    assert all(p.isfinite().all() for p in parameters.values())


@pytest.mark.few(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_goes_on_to_the_bit_and_on_the_other_kind_of_device(tiny, lean, device, dtype):
    """In both directions: what a GPU left a CPU takes, and a GPU what that CPU left."""
    parameters = tiny.make(dtype=dtype, device=device)
    optimizer = lean(parameters)
    run(tiny, parameters, optimizer, [0, 1])
    again, elsewhere = copied(parameters, device), copied(parameters, "cpu")
    state = optimizer.state_tensors()
    run(tiny, parameters, optimizer, [2])
    resumed, flat = lean(again), MuonClip(elsewhere.items(), CONFIG)
    for other in (resumed, flat):
        other.load_state_tensors(state)
    run(tiny, again, resumed, [2])
    run(tiny, elsewhere, flat, [2])
    back = copied(elsewhere, device)
    returned = lean(back)
    returned.load_state_tensors(flat.state_tensors())
    for each, stepping in ((parameters, optimizer), (elsewhere, flat), (back, returned)):
        run(tiny, each, stepping, [3])
    run(tiny, again, resumed, [3])
    for name in tiny.shapes:
        assert torch.equal(parameters[name], again[name])
        master = optimizer.master(parameters[name])
        for each, other in ((elsewhere, flat), (back, returned)):
            close(other.master(each[name]), master, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 2048, 5000])
def test_kernels_write_all_of_what_is_theirs_and_nothing_else(device, size, dtype):
    """Ragged ends, with numbers behind them that no arithmetic may touch."""
    gen = torch.Generator().manual_seed(size)

    def padded(kind=torch.float32, *, positive=False):
        whole = torch.full((size + 64,), torch.nan).to(kind)
        whole[:size] = (
            torch.rand(size, generator=gen) if positive else torch.randn(size, generator=gen)
        )
        whole = whole.to(device)
        return whole, whole[:size]

    counts, clip, steps = (torch.tensor(x, device=device) for x in (True, 2.0, 3))
    facts = updates.facts_of(counts, clip, steps, max_norm=1.0, betas=(0.9, 0.999), eps=1e-8)
    results = []
    for kernel in (True, False):
        gen.manual_seed(size)
        wholes, parts = zip(
            padded(dtype),
            padded(dtype),
            padded(),
            padded(),
            padded(positive=True),
            padded(dtype),
            strict=True,
        )
        weight, gradient, master, m, v, heading = parts
        with switch.forced(updates.NAME, on=kernel):
            updates.adamw_(
                weight, gradient, master, m, v, facts, lr=0.1, decay=0.2, betas=(0.9, 0.999)
            )
            updates.muon_heading_(gradient, m, heading, facts, momentum=0.9, nesterov=True)
            updates.muon_apply_(weight, master, heading, facts, lr=0.1, decay=0.2, scale=3.0)
        assert all(whole[size:].isnan().all() for whole in wholes)
        results.append(parts)
    for got, want in zip(*results, strict=True):
        rounded = dtype == torch.bfloat16
        torch.testing.assert_close(
            got, want, rtol=TRUNCATED if rounded else 2e-5, atol=2e-2 if rounded else 1e-5
        )


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 8, 64), (2, 48, 64), (2, 1, 5)])
def test_orthogonalising_in_place_is_the_same_and_leaves_tall_ones_tall(shape):
    x_BNM = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = orthogonalize(x_BNM, 5)
    torch.testing.assert_close(orthogonalize_in_place(x_BNM.clone(), 5), expected)
    tall = x_BNM.mT.contiguous()
    got = orthogonalize_in_place(tall.mT, 5)
    torch.testing.assert_close(got, expected)
    assert got.mT.is_contiguous()


@pytest.mark.parametrize("shape", [(2, 48, 96), (4, 96, 256), (1, 384, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gaussian_gradients_come_out_as_float64_has_them(device, shape, dtype):
    """1e-5 in float32; in bfloat16 within 5e-2 and singular values in [0.6, 1.3]."""
    gaussian = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = gaussian.double() / gaussian.double().norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = exact @ exact.mT
        exact = A * exact + (B * gram + C * gram @ gram) @ exact
    found = orthogonalize_in_place(gaussian.to(device, dtype), 5).double().cpu()
    error = (found - exact).norm(dim=(-2, -1)) / exact.norm(dim=(-2, -1))
    assert error.max() < (1e-5 if dtype == torch.float32 else 5e-2)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
