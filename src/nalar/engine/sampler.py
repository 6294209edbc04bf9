"""From logits to the next token: one uniform number a row, looked up in the cumulative weights.

The number is a hash of (seed, sample, position), so a sequence draws the same whatever else is in
the batch.

B rows · V vocabulary
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nalar.kernels import switch

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK_64 = (1 << 64) - 1

_LEAST_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class Penalties:
    """What has been said before, and what that costs."""

    repetition_B: Tensor
    presence_B: Tensor
    frequency_B: Tensor
    counts_BV: Tensor
    """int: how often the output holds each id."""
    in_prompt_BV: Tensor
    """bool."""

    def apply(self, logits_BV: Tensor) -> Tensor:
        said_BV = self.counts_BV > 0
        factor_BV = torch.where(said_BV | self.in_prompt_BV, self.repetition_B[:, None], 1.0)
        logits_BV = torch.where(logits_BV > 0, logits_BV / factor_BV, logits_BV * factor_BV)
        logits_BV = logits_BV - self.frequency_B[:, None] * self.counts_BV
        return logits_BV - self.presence_B[:, None] * said_BV

    def is_felt(self) -> Tensor:
        """bool [B]: the rows that are punished, or rewarded, for anything."""
        return (self.repetition_B != 1) | (self.presence_B != 0) | (self.frequency_B != 0)


@dataclass(frozen=True)
class Shaping:
    """How each row changes the model's distribution before the draw."""

    temperature_B: Tensor
    """0 (or too small to divide by): greedy."""
    top_k_B: Tensor
    top_p_B: Tensor
    min_p_B: Tensor
    cuts: bool
    """Whether any row uses top-k, top-p or min-p; without them nothing needs sorting."""
    penalties: Penalties | None = None

    @classmethod
    def by_temperature(cls, temperature_B: Tensor, vocab_size: int) -> "Shaping":
        ones_B = torch.ones_like(temperature_B)
        all_B = torch.full_like(temperature_B, vocab_size, dtype=torch.int64)
        return cls(temperature_B, all_B, ones_B, torch.zeros_like(ones_B), cuts=False)

    def is_by_temperature(self, vocab_size: int) -> Tensor:
        """bool [B]: the rows that nothing but the temperature changes."""
        is_so_B = (self.top_k_B >= vocab_size) & (self.top_p_B >= 1) & (self.min_p_B <= 0)
        if self.penalties is not None:
            is_so_B &= ~self.penalties.is_felt()
        return is_so_B


@dataclass(frozen=True)
class Changes:
    """What the host does to single logits, and to whole draws."""

    bias: tuple[Tensor, Tensor, Tensor] | None = None
    """Rows, ids and what is added there; -inf bans."""
    allowed: tuple[Tensor, Tensor] | None = None
    """Rows X, and uint8 [X, W] with one bit for each id, the lowest of a byte first: what they may draw."""
    forced: tuple[Tensor, Tensor] | None = None
    """Rows, and the ids that come there in any case."""

    def apply(self, logits_BV: Tensor) -> Tensor:
        if self.bias is not None:
            rows, ids, values = self.bias
            logits_BV = logits_BV.index_put((rows, ids), values, accumulate=True)
        if self.allowed is not None:
            rows, bits_XW = self.allowed
            allowed_XV = _unpacked(bits_XW, logits_BV.shape[-1])
            kept_XV = logits_BV[rows].masked_fill(~allowed_XV, -torch.inf)
            logits_BV = logits_BV.index_copy(0, rows, kept_XV)
        return logits_BV

    def rows(self) -> Iterator[Tensor]:
        """Those that are changed; some several times."""
        for part in (self.bias, self.allowed, self.forced):
            if part is not None:
                yield part[0]


@dataclass(frozen=True)
class Drawn:
    """One token a row."""

    ids_B: Tensor
    """int64."""
    logprobs_B: Tensor
    """fp32, raw: at temperature 1, with nothing cut, banned or punished."""
    processed_B: Tensor
    """fp32, under the distribution drawn from."""


def draw(
    logits_BV: Tensor,
    uniform_B: Tensor,
    shaping: Shaping | None = None,
    changes: Changes | None = None,
) -> Drawn:
    """Draw one token a row: bias, bans and masks first, then penalties, temperature, min-p, top-k, top-p, as in vLLM.

    Without `shaping` every row draws from the model's own distribution, and gets the very token that it
    would get beside rows that are shaped.
    """
    if not _kernel_takes(logits_BV):
        return _drawn_plainly(logits_BV, uniform_B, shaping, changes)
    from nalar.kernels.gpu import sampling

    temperature_B = None if shaping is None else shaping.temperature_B
    by_kernel = sampling.sample(logits_BV, uniform_B=uniform_B, temperature=temperature_B)
    if changes is None and (shaping is None or not (shaping.cuts or shaping.penalties is not None)):
        return Drawn(*by_kernel)
    # The plain form rounds differently: a row must not feel in what company it is.
    plain = _drawn_plainly(logits_BV, uniform_B, shaping, changes)
    is_plain_B = torch.zeros_like(uniform_B, dtype=torch.bool)
    if shaping is not None:
        is_plain_B = ~shaping.is_by_temperature(logits_BV.shape[-1])
    for rows in () if changes is None else changes.rows():
        is_plain_B = is_plain_B.index_fill(0, rows, True)
    both = zip((plain.ids_B, plain.logprobs_B, plain.processed_B), by_kernel, strict=True)
    return Drawn(*(torch.where(is_plain_B, one, other) for one, other in both))


def sample(
    logits_BV: Tensor,
    keys: Tensor,
    counters_B: Tensor,
    temperature: Tensor | None = None,
    rows_B: Tensor | None = None,
) -> Drawn:
    """`draw` with the uniforms of these keys and counters, where nothing is changed but the temperature.

    rows_B: then keys and temperature are those of all rows, and row b's stand at rows_B[b].
    """
    if _kernel_takes(logits_BV):
        from nalar.kernels.gpu import sampling

        given = {"keys": keys, "counters_B": counters_B, "temperature": temperature}
        return Drawn(*sampling.sample(logits_BV, rows_B=rows_B, **given))
    if rows_B is not None:
        keys = keys[rows_B]
        temperature = None if temperature is None else temperature[rows_B]
    shaping = None
    if temperature is not None:
        shaping = Shaping.by_temperature(temperature, logits_BV.shape[-1])
    return _drawn_plainly(logits_BV, uniforms(keys, counters_B), shaping, None)


def _kernel_takes(logits_BV: Tensor) -> bool:
    if not switch.runs("sample", logits_BV):
        return False
    if logits_BV.dtype != torch.float32 or logits_BV.stride(-1) != 1:
        switch.refuse("sample", f"logits in {logits_BV.dtype}, strides {logits_BV.stride()}")
        return False
    return True


def _drawn_plainly(
    logits_BV: Tensor, uniform_B: Tensor, shaping: Shaping | None, changes: Changes | None
) -> Drawn:
    raw_BV = logits_BV.log_softmax(-1)
    if changes is not None:
        logits_BV = changes.apply(logits_BV)
    weights_BV = logits_BV.softmax(-1) if shaping is None else _shaped(logits_BV, shaping)
    ids_B1, total_B1 = _look_up(weights_BV, uniform_B)
    processed_B1 = (weights_BV.gather(-1, ids_B1) / total_B1).log().float()
    if changes is not None and changes.forced is not None:
        rows, ids = changes.forced
        ids_B1[rows, 0] = ids
        processed_B1[rows] = 0.0
    return Drawn(ids_B1[:, 0], raw_BV.gather(-1, ids_B1)[:, 0], processed_B1[:, 0])


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


def _shaped(logits_BV: Tensor, shaping: Shaping) -> Tensor:
    """The weights to draw by, which need not add up to 1."""
    if shaping.penalties is not None:
        logits_BV = shaping.penalties.apply(logits_BV)
    is_greedy_B1 = shaping.temperature_B[:, None] < _LEAST_TEMPERATURE
    temperature_B1 = shaping.temperature_B[:, None].masked_fill(is_greedy_B1, 1.0)
    weights_BV = (logits_BV / temperature_B1).softmax(-1)
    if shaping.cuts:
        weights_BV = weights_BV * _kept(weights_BV, shaping)
    best_BV = torch.zeros_like(weights_BV).scatter(-1, logits_BV.argmax(-1, keepdim=True), 1.0)
    return torch.where(is_greedy_B1, best_BV, weights_BV)


def _look_up(weights_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first token whose cumulative weight exceeds the uniform's share of the total, and that total (float64).

    It never has weight 0, and the weights need not add up to 1.
    """
    cumulative_BV = weights_BV.double().cumsum(-1)
    total_B1 = cumulative_BV[:, -1:]
    # Rounding could lift the target to the total itself, beyond the last token.
    below_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))
    target_B1 = torch.minimum(uniform_B[:, None] * total_B1, below_B1)
    ids_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    ids_B1.clamp_(max=cumulative_BV.shape[-1] - 1)  # only NaN can reach beyond
    return ids_B1, total_B1


def _kept(weights_BV: Tensor, shaping: Shaping) -> Tensor:
    """Min-p, then top-k, then top-p of what those leave. Exactly k stay; of equal tokens those with lower ids."""
    sorted_BV, order_BV = weights_BV.sort(dim=-1, descending=True, stable=True)
    ranks_V = torch.arange(weights_BV.shape[-1], device=weights_BV.device)
    in_min_p_BV = sorted_BV >= shaping.min_p_B[:, None] * sorted_BV[:, :1]
    in_both_BV = in_min_p_BV & (ranks_V < shaping.top_k_B[:, None])  # top_k is V where off
    cumulative_BV = (sorted_BV * in_both_BV).cumsum(-1, dtype=torch.float64)
    top_p_B1 = shaping.top_p_B[:, None]
    before_BV = cumulative_BV - sorted_BV
    # Where top-p is off, rounding must not cost the tail its place.
    in_top_p_BV = (before_BV < top_p_B1 * cumulative_BV[:, -1:]) | (top_p_B1 >= 1)
    return torch.zeros_like(in_both_BV).scatter(-1, order_BV, in_both_BV & in_top_p_BV)


def _unpacked(bits_XW: Tensor, vocab_size: int) -> Tensor:
    """bool [X, V]."""
    places_8 = torch.arange(8, dtype=torch.uint8, device=bits_XW.device)
    return ((bits_XW[..., None] >> places_8) & 1).flatten(1)[:, :vocab_size].bool()


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
