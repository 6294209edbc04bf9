"""Rotary positions (arXiv:2104.09864): frequencies, scaled where a model was made longer; their table."""

# P rotary width

import math

import torch
from torch import Tensor

from nalar.model.config import ModelConfig, RopeScaling, yarn_mscale


def rotation_table(config: ModelConfig) -> Tensor:
    """float32 [max_position_embeddings, P/2, 2]: what turns each pair at each position, real and imaginary part."""
    freq = frequencies(config)
    angle = torch.arange(config.max_position_embeddings, dtype=torch.float64)[:, None] * freq
    length = torch.full_like(angle, attention_factor(config.rope_scaling))
    return torch.view_as_real(torch.polar(length, angle).to(torch.complex64))


def frequencies(config: ModelConfig) -> Tensor:
    """float64 [P/2]: how far each pair turns from one position to the next, in radians."""
    width = config.rotary_dim
    freq = config.rope_theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    if config.rope_scaling is None:
        return freq
    if config.rope_scaling.rope_type == "yarn":
        return _yarn(freq, config.rope_theta, config.rope_scaling)
    return _llama3(freq, config.rope_scaling)


def attention_factor(scaling: RopeScaling | None) -> float:
    """What YaRN multiplies rotated queries and keys by; 1 for all else."""
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(
            scaling.factor, scaling.mscale_all_dim
        )
    return yarn_mscale(scaling.factor)


def softmax_factor(scaling: RopeScaling | None) -> float:
    """What YaRN multiplies the softmax scale of latent attention by, at any length.

    It reaches the part of a head that is not rotated too; grouped-query attention knows no such factor.
    """
    if scaling is None or scaling.rope_type != "yarn" or not scaling.mscale_all_dim:
        return 1.0
    return yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2


def _yarn(freq: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Fast pairs as they were, slow ones slowed by the factor, a ramp over the pairs between."""
    width = 2 * len(freq)

    def pair_of(turns: float) -> float:
        """Which pair, as a real number, turns this often over the original length."""
        wave = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return width * math.log(wave) / (2 * math.log(theta))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high += 0.001 if low == high else 0.0  # a ramp needs a width
    ramp = ((torch.arange(len(freq), dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return freq / scaling.factor * ramp + freq * (1 - ramp)


def _llama3(freq: Tensor, scaling: RopeScaling) -> Tensor:
    """By the number of turns over the original length: many as they were, few slowed, a blend between."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert low is not None and high is not None, "checked when the config was made"
    turns = scaling.original_max_position_embeddings * freq / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return freq / scaling.factor * (1 - blend) + freq * blend
