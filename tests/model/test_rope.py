"""Frequencies and factors of released models are those that transformers computes for them."""

import math

import pytest
import torch
from torch.testing import assert_close

from nalar.kernels.rotary import rotate
from nalar.model.config import ModelConfig, RopeScaling
from nalar.model.rope import attention_factor, frequencies, softmax_factor

SIZES = {
    "vocab_size": 8,
    "hidden_size": 64,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "kv_lora_rank": None,
    "num_key_value_heads": 1,
}
PUBLISHED = {
    "deepseek-v3": (
        64,
        1e4,
        {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0},
    ),
    "kimi-k2": (
        64,
        5e4,
        {"factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 1.0, "beta_slow": 1.0},
    ),
    "qwen2.5": (128, 1e6, {"factor": 4.0}),
    "unlike-mscales": (32, 1e4, {"factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.2}),
    "one-mscale": (32, 1e4, {"factor": 8.0, "mscale": 0.7}),
    "given-factor": (32, 1e4, {"factor": 8.0, "attention_factor": 1.3, "truncate": False}),
}


def config_of(width: int, theta: float, scaling: RopeScaling | None) -> ModelConfig:
    return ModelConfig(**SIZES, head_dim=width, rope_theta=theta, rope_scaling=scaling)


def theirs(kind: str, width: int, theta: float, numbers: dict):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {"rope_type": kind, "rope_theta": theta, **numbers}
    config = transformers.LlamaConfig(
        head_dim=width, max_position_embeddings=163840, rope_parameters=settings
    )
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_yarn_turns_as_in_transformers(name):
    width, theta, numbers = PUBLISHED[name]
    numbers = numbers | {"original_max_position_embeddings": 4096}
    scaling = RopeScaling(rope_type="yarn", **numbers)
    expected, factor = theirs("yarn", width, theta, numbers)
    got = frequencies(config_of(width, theta, scaling))
    assert_close(got, expected.double(), rtol=1e-6, atol=0)
    assert attention_factor(scaling) == pytest.approx(factor, rel=1e-12)
    assert not torch.allclose(got, frequencies(config_of(width, theta, None)), rtol=0.01)


def test_llama3_turns_as_in_transformers():
    numbers = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaling = RopeScaling(rope_type="llama3", **numbers)
    expected, factor = theirs("llama3", 128, 5e5, numbers)
    assert_close(frequencies(config_of(128, 5e5, scaling)), expected.double(), rtol=1e-6, atol=0)
    assert attention_factor(scaling) == softmax_factor(scaling) == factor == 1


def test_the_softmax_scale_of_deepseek_v3_is_the_published_one():
    scaling = RopeScaling(
        rope_type="yarn",
        factor=40.0,
        original_max_position_embeddings=4096,
        mscale=1.0,
        mscale_all_dim=1.0,
    )
    assert softmax_factor(scaling) == (0.1 * math.log(40) + 1) ** 2
    assert softmax_factor(None) == 1


def test_the_two_orders_are_one_rotation_of_reordered_numbers():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, generator=generator)
    turn = torch.polar(torch.ones(5, 4), torch.randn(5, 4, generator=generator))
    halves = x.unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2)  # i, i + 4 become neighbours
    expected = rotate(halves, turn).unflatten(-1, (4, 2)).transpose(-1, -2).flatten(-2)
    assert_close(rotate(x, turn, interleave=False), expected)
