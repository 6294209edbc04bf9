"""The updates of GPUs, with their kernels under Triton's interpreter and without, against those of CPUs."""

import math

import pytest
import torch

from nalar.kernels import switch, updates
from nalar.optim import muonclip
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip
from nalar.optim.newton_schulz import orthogonalize, orthogonalize_in_place

CONFIG = OptimConfig(lr=0.02, adamw_lr=0.005, weight_decay=0.1, clip_grad_norm=0.1)
TRUNCATED = 2**-7


@pytest.fixture(params=["plain", "kernel"])
def lean(request, monkeypatch):
    """Makes optimizers as they are on a GPU."""

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


@pytest.mark.parametrize("name", ["muonclip", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_move_as_on_a_cpu(tiny, lean, name, dtype):
    config = CONFIG.model_copy(update={"name": name})
    ours, theirs = tiny.make(dtype=dtype), tiny.make(dtype=dtype)
    optimizer, flat = lean(ours, config), MuonClip(theirs.items(), config)
    found = run(tiny, ours, optimizer, range(3), lr_factor=0.5)
    expected = run(tiny, theirs, flat, range(3), lr_factor=0.5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.norms, other.norms)
        torch.testing.assert_close(one.grad_norm, other.grad_norm)
    state, wanted = optimizer.state_tensors(), flat.state_tensors()
    assert state.keys() == wanted.keys()
    for key in wanted:
        torch.testing.assert_close(state[key], wanted[key], rtol=1e-5, atol=2e-6, msg=key)
    for key in tiny.shapes:
        torch.testing.assert_close(optimizer.master(ours[key]), flat.master(theirs[key]))
        rounded = optimizer.master(ours[key]).to(dtype)
        # Triton's interpreter cuts where the device rounds.
        torch.testing.assert_close(ours[key].data, rounded, rtol=TRUNCATED, atol=0)


def test_without_nesterov_and_without_a_ceiling_on_the_norm_too(tiny, lean):
    config = CONFIG.model_copy(update={"nesterov": False, "clip_grad_norm": None})
    ours, theirs = tiny.make(), tiny.make()
    run(tiny, ours, lean(ours, config), range(2))
    run(tiny, theirs, MuonClip(theirs.items(), config), range(2))
    for key in tiny.shapes:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_does_not_count_leaves_no_trace(tiny, lean, bad):
    parameters = tiny.make(dtype=torch.bfloat16)
    optimizer = lean(parameters)
    run(tiny, parameters, optimizer, [0])
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    before = optimizer.state_tensors()
    tiny.set_gradients(parameters, 1)
    for name in ("lm_head.weight", "model.layers.1.mlp.experts.down"):
        parameters[name].grad.view(-1)[3] = bad
    assert not optimizer.step().applied
    assert all(torch.equal(parameters[name], weights[name]) for name in tiny.shapes)
    after = optimizer.state_tensors()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert all(key.startswith("guard.") for key in changed)
    run(tiny, parameters, optimizer, [2])
    assert all(p.isfinite().all() for p in parameters.values())


def test_a_run_goes_on_to_the_bit_and_on_the_other_kind_of_device(tiny, lean):
    parameters = tiny.make()
    optimizer = lean(parameters)
    run(tiny, parameters, optimizer, [0, 1])
    state = optimizer.state_tensors()
    again = {n: torch.nn.Parameter(p.detach().clone()) for n, p in parameters.items()}
    elsewhere = {n: torch.nn.Parameter(p.detach().clone()) for n, p in parameters.items()}
    run(tiny, parameters, optimizer, [2])
    resumed, flat = lean(again), MuonClip(elsewhere.items(), CONFIG)
    for other in (resumed, flat):
        other.load_state_tensors(state)
    run(tiny, again, resumed, [2])
    run(tiny, elsewhere, flat, [2])
    for name in tiny.shapes:
        assert torch.equal(parameters[name], again[name])
        torch.testing.assert_close(parameters[name], elsewhere[name], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 2048, 5000])
def test_kernels_write_all_of_what_is_theirs_and_nothing_else(size, dtype):
    """Ragged ends, with numbers behind them that no arithmetic may touch."""
    gen = torch.Generator().manual_seed(size)

    def padded(kind=torch.float32, *, positive=False):
        whole = torch.full((size + 64,), torch.nan).to(kind)
        whole[:size] = (
            torch.rand(size, generator=gen) if positive else torch.randn(size, generator=gen)
        )
        return whole, whole[:size]

    counts, clip = torch.tensor(True), torch.tensor(2.0)
    facts = updates.facts_of(
        counts, clip, torch.tensor(3), max_norm=1.0, betas=(0.9, 0.999), eps=1e-8
    )
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


@pytest.mark.parametrize("shape", [(2, 48, 64), (4, 96, 256)])
def test_in_bfloat16_singular_values_stay_in_their_band(shape):
    x_BNM = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x_BNM = x_BNM + 2 * torch.eye(shape[1], shape[2]) * shape[2] ** 0.5
    rounded = orthogonalize_in_place(x_BNM.bfloat16(), 5).float()
    values = torch.linalg.svdvals(rounded)
    assert values.min() > 0.6 and values.max() < 1.3
    exact = orthogonalize(x_BNM, 5)
    assert (rounded - exact).norm() / exact.norm() < 5e-2
