"""What adapters take, by formula: numbers, operations, bytes; against a model that has them."""

import pytest
import torch

from nalar.model.config import LoraConfig
from nalar.model.lora import adapt
from nalar.model.transformer import Transformer
from nalar.plan.cost import moving_bytes, training_memory
from nalar.plan.model import adapter_params, count_parameters, flops_per_token, sequence_flops
from nalar.recipes.zero import zero_cpu

LORA = LoraConfig(r=4)


@pytest.fixture
def config():
    return zero_cpu().model


def test_numbers_are_those_of_the_module(config):
    with torch.device("meta"):
        model = Transformer(config)
    before = sum(p.numel() for p in model.parameters())
    one = LoraConfig(r=3, target_modules=("q_proj",))
    rows = config.num_attention_heads * config.qk_head_dim
    each = 3 * (config.hidden_size + rows)
    assert adapter_params(config, one) == config.num_hidden_layers * each
    assert adapter_params(config, None) is None
    whole = Transformer(config)
    adapt(whole, LORA, base="base", seed=0)
    learned = sum(p.numel() for _, p in whole.trained_parameters(ahead=False))
    assert learned == adapter_params(config, LORA)
    assert sum(p.numel() for p in whole.parameters()) == before + learned


def test_operations_leave_out_the_gradients_of_weights(config):
    learned = adapter_params(config, LORA)
    forward = flops_per_token(config, 0, backward=False)
    trained = flops_per_token(config, 0, backward=True, adapter_params=learned)
    assert trained == 2 * forward + 4 * learned
    by_context = flops_per_token(config, 10, backward=False) - forward
    assert flops_per_token(config, 10, backward=True, adapter_params=learned) == pytest.approx(
        trained + 3 * by_context
    )
    assert (
        flops_per_token(config, 10, backward=False, adapter_params=learned) == forward + by_context
    )
    whole = sequence_flops(config, 20, backward=True)
    assert 0.6 < sequence_flops(config, 20, backward=True, adapter_params=learned) / whole < 0.8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_has_the_state_of_adapters_alone(config, dtype):
    size = 4 if dtype == "float32" else 2
    whole = Transformer(config)
    adapt(whole, LORA, base="base", seed=0)
    folded = sum(b.numel() for name, b in whole.named_buffers() if name.endswith("base_weight"))
    learned = adapter_params(config, LORA)
    estimate = training_memory(config, batch_tokens=64, row_tokens=64, dtype=dtype, lora=LORA)
    total = count_parameters(config).total_params
    assert estimate.parameters_bytes == size * (total + folded) + 4 * learned
    assert estimate.gradients_bytes == 4 * learned
    assert estimate.optimizer_bytes == 4 * 3 * learned
    assert moving_bytes(config, LORA, dtype) == size * folded + 4 * learned
    plain = training_memory(config, batch_tokens=64, row_tokens=64, dtype=dtype)
    assert estimate.activations_bytes == plain.activations_bytes
    assert estimate.total_bytes < plain.total_bytes
