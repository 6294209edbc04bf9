"""From logits to the next token: one uniform number a row, looked up in the cumulative weights.

The number is a hash of (seed, sample, position), so a sequence draws the same whatever else is in
the batch.

B rows · V vocabulary
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK_64 = (1 << 64) - 1

_LEAST_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class Shaping:
    """How each row changes the model's distribution before the draw."""

    temperature_B: Tensor
    """0 (or too small to divide by): greedy."""
    top_k_B: Tensor
    top_p_B: Tensor
    cuts: bool
    """Whether any row uses top-k or top-p; without them nothing needs sorting."""


Banned = tuple[list[int], list[int]]
"""Rows and, beside each, a token id that it may not draw."""


def sample(
    logits_BV: Tensor,
    uniform_B: Tensor,
    shaping: Shaping | None = None,
    banned: Banned | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row. Returns ids (int64) and their raw log-softmax, float32.

    "Raw": at temperature 1, with nothing cut or banned. Without `shaping` every row draws from just
    that distribution, and gets the very token that it would get beside rows that are shaped.
    """
    if shaping is None and banned is None:
        ids_B1 = _look_up(logits_BV.softmax(-1), uniform_B)
    else:
        ids_B1 = _sample_shaped(logits_BV, uniform_B, shaping, banned)
    logprobs_B1 = logits_BV.log_softmax(-1).gather(-1, ids_B1)
    return ids_B1[:, 0], logprobs_B1[:, 0]


def uniforms(keys_B: Tensor, counters_B: Tensor) -> Tensor:
    """Numbers in [0, 1), float64, by SplitMix64 (Steele, Lea and Flood, 2014) of key and counter
    (int64).
    """
    z = keys_B + counters_B * _signed(_GOLDEN)  # int64 products wrap around, as wanted
    z = (z ^ _shift_right(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_MIX_2)
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 11).double() * 2.0**-53


def stream_key(seed: int, sample_id: int) -> int:
    """The key of one sample's stream of random numbers, as a signed 64-bit integer."""
    return _signed(_mix(_mix(seed & _MASK_64) + sample_id))


def _sample_shaped(
    logits_BV: Tensor, uniform_B: Tensor, shaping: Shaping | None, banned: Banned | None
) -> Tensor:
    if banned is not None:
        rows, ids = (torch.tensor(values, device=logits_BV.device) for values in banned)
        logits_BV = logits_BV.index_put((rows, ids), logits_BV.new_tensor(-torch.inf))
    if shaping is None:
        return _look_up(logits_BV.softmax(-1), uniform_B)
    is_greedy_B1 = shaping.temperature_B[:, None] < _LEAST_TEMPERATURE
    temperature_B1 = shaping.temperature_B[:, None].masked_fill(is_greedy_B1, 1.0)
    weights_BV = (logits_BV / temperature_B1).softmax(-1)
    if shaping.cuts:
        weights_BV = weights_BV * _kept(weights_BV, shaping)
    drawn_B1 = _look_up(weights_BV, uniform_B)
    return torch.where(is_greedy_B1, logits_BV.argmax(-1, keepdim=True), drawn_B1)


def _look_up(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds the uniform's share of the total.

    It never has weight 0, and the weights need not add up to 1.
    """
    cumulative_BV = weights_BV.double().cumsum(-1)
    total_B1 = cumulative_BV[:, -1:]
    # Rounding could lift the target to the total itself, beyond the last token.
    below_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))
    target_B1 = torch.minimum(uniform_B[:, None] * total_B1, below_B1)
    ids_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    return ids_B1.clamp_(max=cumulative_BV.shape[-1] - 1)  # only NaN can reach beyond


def _kept(weights_BV: Tensor, shaping: Shaping) -> Tensor:
    """Top-k, then top-p of what it leaves. Exactly k stay; of equal tokens those with lower ids."""
    sorted_BV, order_BV = weights_BV.sort(dim=-1, descending=True, stable=True)
    ranks_V = torch.arange(weights_BV.shape[-1], device=weights_BV.device)
    in_top_k_BV = ranks_V < shaping.top_k_B[:, None]  # V where off
    cumulative_BV = (sorted_BV * in_top_k_BV).cumsum(-1, dtype=torch.float64)
    top_p_B1 = shaping.top_p_B[:, None]
    before_BV = cumulative_BV - sorted_BV
    # Where top-p is off, rounding must not cost the tail its place.
    in_top_p_BV = (before_BV < top_p_B1 * cumulative_BV[:, -1:]) | (top_p_B1 >= 1)
    return torch.zeros_like(in_top_k_BV).scatter(-1, order_BV, in_top_k_BV & in_top_p_BV)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift of int64: the sign bit is not smeared."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: int) -> int:
    z = (z + _GOLDEN) & _MASK_64
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK_64
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK_64
    return z ^ (z >> 31)


def _signed(z: int) -> int:
    return z - (1 << 64) if z >> 63 else z
