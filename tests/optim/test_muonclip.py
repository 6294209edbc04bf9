import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from nalar.config import UserError
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip

MUON = OptimConfig(lr=0.02, adamw_lr=0.005, weight_decay=0.1, clip_grad_norm=None)


def reference_orthogonalize(x):
    """Newton-Schulz on one float64 matrix, in numpy."""
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / (math.sqrt((x * x).sum()) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if is_tall else x


def reference_muon(weight, gradients, *, lr, decay, momentum, nesterov):
    """Muon on one float64 matrix over several steps, as in the paper."""
    m = np.zeros_like(weight)
    for g in gradients:
        m = momentum * m + g
        direction = reference_orthogonalize(g + momentum * m if nesterov else m)
        scale = 0.2 * math.sqrt(max(weight.shape))
        weight = weight - lr * (scale * direction + decay * weight)
    return weight


def steps(tiny, parameters, optimizer, seeds):
    for seed in seeds:
        tiny.set_gradients(parameters, seed)
        assert optimizer.step().applied


def as_matrices(tensor):
    return tensor.detach().double().numpy().reshape(-1, *tensor.shape[-2:])


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_muon_equals_a_float64_reference_matrix_by_matrix(tiny, nesterov, num_steps):
    parameters = tiny.make()
    before = {name: as_matrices(p) for name, p in parameters.items() if p.ndim > 1}
    config = MUON.model_copy(update={"nesterov": nesterov})
    steps(tiny, parameters, MuonClip(parameters.items(), config), range(num_steps))
    gradients = []
    for seed in range(num_steps):
        tiny.set_gradients(parameters, seed)
        gradients.append(
            {name: as_matrices(p.grad) for name, p in parameters.items() if p.ndim > 1}
        )
    names = set(tiny.shapes) - tiny.adamw - {tiny.router}
    assert {"model.layers.1.mlp.experts.down", "model.layers.0.mlp.down_proj.weight"} <= names
    for name in names:
        for i, weight in enumerate(before[name]):
            want = reference_muon(
                weight,
                [g[name][i] for g in gradients],
                lr=0.02,
                decay=0.1,
                momentum=0.95,
                nesterov=nesterov,
            )
            got = as_matrices(parameters[name])[i]
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-6, err_msg=f"{name}[{i}]")


def test_batching_changes_nothing(tiny):
    names = [name for name in tiny.shapes if name not in tiny.adamw]
    together = tiny.make()
    steps(tiny, together, MuonClip(together.items(), MUON), [1, 2])
    for name in names:
        alone = tiny.make()
        optimizer = MuonClip([(name, alone[name])], MUON)
        for seed in (1, 2):
            tiny.set_gradients(alone, seed)
            optimizer.step()
        torch.testing.assert_close(together[name], alone[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_adamw_part_equals_torch(tiny, name):
    config = MUON.model_copy(update={"name": name})
    ours, theirs = tiny.make(), tiny.make()
    owned = list(tiny.shapes) if name == "adamw" else [*tiny.adamw, tiny.router]
    reference = torch.optim.AdamW(
        [theirs[n] for n in owned], lr=0.005, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    )
    optimizer = MuonClip(ours.items(), config)
    for seed in range(5):
        steps(tiny, ours, optimizer, [seed])
        tiny.set_gradients(theirs, seed)
        reference.step()
    for n in owned:
        torch.testing.assert_close(ours[n], theirs[n], rtol=1e-5, atol=1e-7)


def test_the_factor_scales_both_learning_rates_and_the_decay(tiny):
    half, slow = tiny.make(), tiny.make()
    tiny.set_gradients(half, 0)
    tiny.set_gradients(slow, 0)
    MuonClip(half.items(), MUON).step(0.5)
    MuonClip(slow.items(), MUON.model_copy(update={"lr": 0.01, "adamw_lr": 0.0025})).step()
    assert all(torch.equal(half[name], slow[name]) for name in tiny.shapes)


def test_clipping_equals_torch_and_leaves_the_gradients(tiny):
    ours, theirs = tiny.make(), tiny.make()
    tiny.set_gradients(ours, 0)
    tiny.set_gradients(theirs, 0)
    want = torch.nn.utils.clip_grad_norm_(theirs.values(), 0.1)
    kept = {name: p.grad.clone() for name, p in ours.items()}
    result = MuonClip(ours.items(), MUON.model_copy(update={"clip_grad_norm": 0.1})).step()
    MuonClip(theirs.items(), MUON).step()
    assert float(result.grad_norm) == pytest.approx(float(want), rel=1e-5)
    for name in tiny.shapes:
        assert torch.equal(ours[name].grad, kept[name])
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_state(tiny, bad):
    parameters = tiny.make()
    optimizer = MuonClip(parameters.items(), MUON)
    steps(tiny, parameters, optimizer, [0])
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    state = optimizer.state_tensors()
    tiny.set_gradients(parameters, 1)
    parameters["lm_head.weight"].grad[3, 4] = bad
    result = optimizer.step()
    assert not result.applied
    assert not math.isfinite(result.grad_norm)
    assert all(torch.equal(parameters[name], weights[name]) for name in tiny.shapes)
    after = optimizer.state_tensors()
    changed = {key for key in state if not torch.equal(state[key], after[key])}
    assert changed == {"guard.seen", "guard.spikes_W", "guard.dropped_in_a_row"}
    assert [n for n, x in zip(optimizer.names, result.norms, strict=True) if not x.isfinite()] == [
        "lm_head.weight"
    ]


@pytest.mark.parametrize("name", ["muonclip", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_goes_on_to_the_bit(tiny, name, dtype):
    config = MUON.model_copy(update={"name": name})
    whole = tiny.make(dtype=dtype)
    optimizer = MuonClip(whole.items(), config)
    steps(tiny, whole, optimizer, [0, 1, 2])
    weights = {n: p.detach().clone() for n, p in whole.items()}
    on_disk = save(optimizer.state_tensors())
    steps(tiny, whole, optimizer, [3, 4])

    resumed = {n: torch.nn.Parameter(weights[n].clone()) for n in tiny.shapes}
    optimizer = MuonClip(resumed.items(), config)
    optimizer.load_state_tensors(load(on_disk))
    steps(tiny, resumed, optimizer, [3, 4])
    assert all(torch.equal(whole[n], resumed[n]) for n in tiny.shapes)


def test_state_goes_by_name_and_not_by_order(tiny):
    parameters = tiny.make()
    optimizer = MuonClip(parameters.items(), MUON)
    steps(tiny, parameters, optimizer, [0])
    state = optimizer.state_tensors()
    other = MuonClip(reversed(tiny.make().items()), MUON)
    other.load_state_tensors(state)
    assert all(torch.equal(state[key], tensor) for key, tensor in other.state_tensors().items())
    assert state["muon.momentum.model.layers.1.mlp.experts.down"].shape == (4, 16, 12)


def test_a_state_of_another_model_is_refused_and_nothing_changes(tiny):
    parameters = tiny.make()
    optimizer = MuonClip(parameters.items(), MUON)
    steps(tiny, parameters, optimizer, [0])
    state = optimizer.state_tensors()
    missing = {key: tensor for key, tensor in state.items() if "o_proj" not in key}
    reshaped = state | {"adamw.exp_avg.lm_head.weight": torch.zeros(32, 15)}
    for bad in (missing, reshaped, state | {"muon.momentum.extra": torch.zeros(1)}):
        with pytest.raises(UserError, match="optimizer state"):
            optimizer.load_state_tensors({key: tensor + 1 for key, tensor in bad.items()})
    after = optimizer.state_tensors()
    assert all(torch.equal(state[key], now) for key, now in after.items())


def test_small_updates_are_not_lost_in_bfloat16(tiny):
    config = MUON.model_copy(update={"lr": 1e-5, "adamw_lr": 1e-5})
    exact, rounded = tiny.make(), tiny.make(dtype=torch.bfloat16)
    with torch.no_grad():
        for name in tiny.shapes:
            exact[name].copy_(rounded[name])
    start = {name: p.detach().clone() for name, p in rounded.items()}
    float_steps, bf16_steps = MuonClip(exact.items(), config), MuonClip(rounded.items(), config)
    for seed in range(20):
        tiny.set_gradients(rounded, seed % 2)
        for name in tiny.shapes:
            exact[name].grad = rounded[name].grad.float()
        float_steps.step()
        bf16_steps.step()
    for name in tiny.shapes:
        assert rounded[name].dtype == torch.bfloat16
        assert torch.equal(bf16_steps.master(rounded[name]), exact[name])
        assert torch.equal(rounded[name], exact[name].bfloat16())
    assert any(not torch.equal(rounded[name], start[name]) for name in tiny.shapes)


def test_a_float32_parameter_is_its_own_master(tiny):
    parameters = tiny.make()
    optimizer = MuonClip(parameters.items(), MUON)
    for parameter in parameters.values():
        assert optimizer.master(parameter).data_ptr() == parameter.data_ptr()
    assert not any(key.startswith("master.") for key in optimizer.state_tensors())


def test_a_parameter_without_gradient_is_named(tiny):
    parameters = tiny.make()
    tiny.set_gradients(parameters, 0)
    parameters["model.norm.weight"].grad = None
    with pytest.raises(AssertionError, match=r"model\.norm\.weight"):
        MuonClip(parameters.items(), MUON).step()


def test_zero_grad_drops_all_gradients(tiny):
    parameters = tiny.make()
    tiny.set_gradients(parameters, 0)
    MuonClip(parameters.items(), MUON).zero_grad()
    assert all(parameter.grad is None for parameter in parameters.values())
