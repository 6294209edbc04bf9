"""The step that a GPU takes, taken on a CPU: its paths, with torch's operations or ours under Triton's interpreter
where the device has kernels. Losses are those of the CPU's own step."""

from dataclasses import replace

import pytest
import torch

from nalar.kernels import attention, logprobs, switch
from nalar.model.compiled import CompiledBlocks
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim import lean, muonclip
from nalar.train import step as step_module
from nalar.train.pretrain import on_device
from nalar.train.step import pretrain_step

KERNELS = ("token_logprobs", "optimizer")
ROUTED = ("router", "route_sort", "spread_choices", "swiglu", "sum_choices")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    def begin():
        monkeypatch.setattr(attention, "_is_on_cpu", lambda x: False)
        monkeypatch.setattr(attention, "can_fuse", lambda q, v: True)
        for module in (logprobs, step_module):
            monkeypatch.setattr(module, "is_rounded", lambda states, head: True)
        monkeypatch.setattr(muonclip, "_is_lean", lambda device: True)
        monkeypatch.setattr(lean, "products_dtype", lambda x: torch.float32)

    return begin


def losses(model, optimizer, batches, steps):
    seen = []
    for i in range(steps):
        device = model.head_weight.device
        parts = [on_device(part, device) for part in batches.batch(i).split(45)]
        metrics = pretrain_step(
            model, optimizer, parts, lr_factor=1.0, balance_speed=0.01
        ).metrics()
        seen.append((metrics.loss, metrics.grad_norm))
    return torch.tensor(seen)


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "settings", [{"qk_clip_tau": 2.0}, pytest.param({"name": "adamw"}, marks=pytest.mark.slow)]
)
def test_it_learns_what_the_step_of_a_cpu_learns(
    make_model, make_optimizer, batches, as_on_a_gpu, device, kernels, settings
):
    model = make_model()
    expected = losses(model, make_optimizer(model, **settings), batches, 4)
    as_on_a_gpu()
    model = make_model().to(device)
    with switch.forced(*KERNELS, on=kernels):
        found = losses(model, make_optimizer(model, **settings), batches, 4)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled_too_and_without_a_break(
    make_model, make_optimizer, batches, as_on_a_gpu, device, backend
):
    model = make_model()
    expected = losses(model, make_optimizer(model), batches, 2)
    as_on_a_gpu()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make_model().to(device)
    model.compiled = CompiledBlocks(backend)
    found = losses(model, make_optimizer(model), batches, 2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "changes",
    [
        {"num_nextn_predict_layers": 2, "tie_word_embeddings": True},
        {
            "kv_lora_rank": None,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "qk_nope_head_dim": None,
            "qk_rope_head_dim": None,
            "v_head_dim": None,
            "logits_scaling": 3.0,
        },
    ],
)
def test_all_that_a_step_can_be_asked_for(
    make_model, make_optimizer, batches, as_on_a_gpu, device, changes
):
    """Prediction ahead, tied heads, shared keys, scaled logits; masks, the balance loss, recomputed blocks."""

    def trained(device):
        given = make_model().config.model_dump() | changes
        model = Transformer(ModelConfig(**given))
        model.initialize(0)
        model = model.to(device)
        model.recompute = True
        optimizer = make_optimizer(model, qk_clip_tau=0.01)
        ahead = {"mtp_loss_weight": 0.3} if "num_nextn_predict_layers" in changes else {}
        for i in range(3):
            parts = [on_device(part, device) for part in batches.batch(i).split(45)]
            parts = [replace(part, counted_N=part.targets_N % 3 != 0) for part in parts]
            outcome = pretrain_step(
                *(model, optimizer, parts),
                **{"lr_factor": 1.0, "balance_speed": 0.01, "balance_loss_weight": 0.1, **ahead},
            )
        metrics = outcome.metrics()
        return [metrics.loss, metrics.grad_norm, metrics.mtp_loss or 0.0, metrics.clipped_heads]

    expected = trained(torch.device("cpu"))
    as_on_a_gpu()
    own = device.type == "cuda"  # in the interpreter it would take a minute
    with switch.forced(*KERNELS, *ROUTED, on=own), switch.forced("routed_experts"):
        found = trained(device)
    assert found == pytest.approx(expected, rel=2e-3)
    assert expected[3] > 0
