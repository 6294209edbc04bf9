"""The step that a GPU takes, taken on a CPU: its paths, with torch's operations or ours under Triton's interpreter
where the device has kernels. Losses are those of the CPU's own step."""

import pytest
import torch

from nalar.kernels import attention, logprobs, switch
from nalar.model.compiled import CompiledBlocks
from nalar.optim import muonclip
from nalar.train import step as step_module
from nalar.train.pretrain import on_device
from nalar.train.step import pretrain_step

KERNELS = ("token_logprobs", "optimizer")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    def begin():
        monkeypatch.setattr(attention, "_is_on_cpu", lambda x: False)
        monkeypatch.setattr(attention, "can_fuse", lambda q, v: True)
        for module in (logprobs, step_module):
            monkeypatch.setattr(module, "is_rounded", lambda states, head: True)
        monkeypatch.setattr(muonclip, "_is_lean", lambda device: True)

    return begin


def losses(model, optimizer, batches, steps):
    seen = []
    for i in range(steps):
        parts = [on_device(part, torch.device("cpu")) for part in batches.batch(i).split(45)]
        metrics = pretrain_step(
            model, optimizer, parts, lr_factor=1.0, balance_speed=0.01
        ).metrics()
        seen.append((metrics.loss, metrics.grad_norm))
    return torch.tensor(seen)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("settings", [{"qk_clip_tau": 2.0}, {"name": "adamw"}])
def test_it_learns_what_the_step_of_a_cpu_learns(
    make_model, make_optimizer, batches, as_on_a_gpu, kernels, settings
):
    model = make_model()
    expected = losses(model, make_optimizer(model, **settings), batches, 4)
    as_on_a_gpu()
    model = make_model()
    with switch.forced(*KERNELS, on=kernels):
        found = losses(model, make_optimizer(model, **settings), batches, 4)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled_too_and_without_a_break(
    make_model, make_optimizer, batches, as_on_a_gpu, backend
):
    model = make_model()
    expected = losses(model, make_optimizer(model), batches, 2)
    as_on_a_gpu()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make_model()
    model.compiled = CompiledBlocks(backend)
    found = losses(model, make_optimizer(model), batches, 2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch._dynamo.utils.counters["graph_break"]
