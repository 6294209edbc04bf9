"""One token a row out of its logits, without sorting: sums of tiles, then a look-up in one tile.

Two launches: every tile of the vocabulary adds up its weights; one program a row finds the tile and reads it again.
FlashSampling and others draw with Gumbel noise for each token; here one uniform number is looked up in the cumulative
weights, so that a draw is a function of that number alone.

B rows · V vocabulary · K tiles of a row
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST_TILE, MOST_TILES = 1024, 128
"""Tokens of a tile, and tiles of a row. Not measured yet: 1024 gives 32 tiles at V 32,000, 2048 gives 75 at 151,936."""
GROUP = 8
"""Neighbours that are added in fp32; the sums of these are added in fp64."""
LEAST_TEMPERATURE = 1e-5
"""Below, a row is greedy."""


def sample(
    logits_BV: Tensor,
    *,
    uniform_B: Tensor | None = None,
    keys: Tensor | None = None,
    counters_B: Tensor | None = None,
    temperature: Tensor | None = None,
    rows_B: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids int64 [B], raw logprobs fp32 [B] (temperature 1), and those of the distribution drawn from, fp32 [B].

    logits_BV: fp32 on a GPU, neighbours in memory along V. A row with NaN, with inf, or with nothing but -inf gets
    a raw logprob of NaN, and an id below V.
    uniform_B: fp64 in [0, 1); or else keys [B] and counters_B, int64, of which SplitMix64 makes it.
    temperature: fp32 [B]; below 1e-5 greedy, of equal logits the lowest id; None: 1.
    rows_B: int64; then keys and temperature are those of all rows, and row b's stand at rows_B[b].

    The id is the first whose cumulative weight exceeds the uniform's share of the total; it never has weight 0.
    What a row gets depends on that row alone.
    """
    B, V = logits_BV.shape
    assert logits_BV.dtype == torch.float32 and logits_BV.stride(1) == 1
    tile = max(LEAST_TILE, triton.next_power_of_2(triton.cdiv(V, MOST_TILES)))
    K = triton.cdiv(V, tile)
    device = logits_BV.device
    sums_B3K = torch.empty(B, 3, K, dtype=torch.float64, device=device)
    ids_B = torch.empty(B, dtype=torch.int64, device=device)
    logprobs_B = torch.empty(B, dtype=torch.float32, device=device)
    processed_B = torch.empty_like(logprobs_B)
    # What is not given is not read; its place takes any tensor.
    warm = logits_BV if temperature is None else temperature
    rows = ids_B if rows_B is None else rows_B
    has = {"HAS_TEMPERATURE": temperature is not None, "HAS_ROWS": rows_B is not None}
    if B == 0:
        return ids_B, logprobs_B, processed_B
    _add_tiles[(B, K)](
        logits_BV, logits_BV.stride(0), V, warm, rows, sums_B3K, K,
        TILE=tile, GROUP=GROUP, LEAST=LEAST_TEMPERATURE, **has, num_warps=4,
    )  # fmt: skip
    first, second = (keys, counters_B) if uniform_B is None else (uniform_B, uniform_B)
    assert first is not None and second is not None
    _look_up[(B,)](
        logits_BV, logits_BV.stride(0), V, first, second, warm, rows, sums_B3K, K,
        ids_B, logprobs_B, processed_B,
        TILE=tile, TILES=triton.next_power_of_2(K), LEAST=LEAST_TEMPERATURE,
        HAS_UNIFORM=uniform_B is not None, **has, num_warps=4,
    )  # fmt: skip
    return ids_B, logprobs_B, processed_B


@triton.jit
def _row_temperature(temperature, rows, b, LEAST, HAS_TEMPERATURE, HAS_ROWS):
    """What to divide by, 1 for a greedy row, and whether it is one."""
    t = 1.0
    is_greedy = False
    if HAS_TEMPERATURE:
        at = b
        if HAS_ROWS:
            at = tl.load(rows + b)
        given = tl.load(temperature + at)
        is_greedy = given < LEAST
        t = tl.where(is_greedy, 1.0, given)
    return t, is_greedy


@triton.jit
def _weights(x, top, t, HAS_TEMPERATURE):
    """exp of x under the temperature, relative to that of the largest of the tile."""
    top = tl.where(top == -float("inf"), 0.0, top)  # so that a tile of -inf has weight 0, not NaN
    if HAS_TEMPERATURE:
        # Correctly rounded, so that a temperature of 1 changes no bit.
        x = tl.div_rn(x, t)
        top = tl.div_rn(top, t)
    return tl.exp(x - top)


@triton.jit
def _add_tiles(
    logits, stride, V, temperature, rows, sums, K,
    TILE: tl.constexpr, GROUP: tl.constexpr, LEAST: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr, HAS_ROWS: tl.constexpr,
):  # fmt: skip
    """Of one tile: the largest logit, and the sums of the weights at temperature 1 and at the row's own."""
    b = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1)
    group = tl.arange(0, TILE // GROUP)[:, None]
    at = k * TILE + group * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(logits + b * stride + at, mask=at < V, other=-float("inf"))
    t, _ = _row_temperature(temperature, rows, b, LEAST, HAS_TEMPERATURE, HAS_ROWS)
    top = tl.max(tl.max(x, 1), 0)
    raw = tl.sum(tl.sum(_weights(x, top, 1.0, False), 1).to(tl.float64), 0)
    own = raw
    if HAS_TEMPERATURE:
        own = tl.sum(tl.sum(_weights(x, top, t, True), 1).to(tl.float64), 0)
    out = sums + b * 3 * K + k
    tl.store(out, top.to(tl.float64))
    tl.store(out + K, raw)
    tl.store(out + 2 * K, own)


@triton.jit
def _uniform(key, counter):
    """fp64 in [0, 1), as `nalar.engine.sampler.uniforms`."""
    z = key.to(tl.uint64, bitcast=True) + counter.to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    return (z >> 11).to(tl.int64).to(tl.float64) * (1.0 / 9007199254740992.0)


@triton.jit
def _first_above(cumulative, weights, target, places, N: tl.constexpr):
    """The first place above the target that has any weight; if rounding leaves none, the last that has; 0 among NaN."""
    has_weight = weights > 0
    found = tl.min(tl.where(has_weight & (cumulative > target), places, N), 0)
    last = tl.max(tl.where(has_weight, places, 0), 0)
    return tl.where(found < N, found, last)


@triton.jit
def _look_up(
    logits, stride, V, keys, counters, temperature, rows, sums, K,
    ids, logprobs, processed,
    TILE: tl.constexpr, TILES: tl.constexpr, LEAST: tl.constexpr,
    HAS_UNIFORM: tl.constexpr, HAS_TEMPERATURE: tl.constexpr, HAS_ROWS: tl.constexpr,
):  # fmt: skip
    """Of one row: the token, and the logarithm of its share."""
    b = tl.program_id(0).to(tl.int64)
    if HAS_UNIFORM:
        uniform = tl.load(keys + b)
    else:
        row = b
        if HAS_ROWS:
            row = tl.load(rows + b)
        uniform = _uniform(tl.load(keys + row), tl.load(counters + b))
    t, is_greedy = _row_temperature(temperature, rows, b, LEAST, HAS_TEMPERATURE, HAS_ROWS)

    tiles = tl.arange(0, TILES)
    own = sums + b * 3 * K + tiles
    tops = tl.load(own, mask=tiles < K, other=-float("inf"))
    top = tl.max(tops, 0)
    total_raw = tl.sum(tl.load(own + K, mask=tiles < K, other=0.0) * tl.exp(tops - top), 0)
    top_t = top.to(tl.float32)
    tops_t = tops.to(tl.float32)
    if HAS_TEMPERATURE:
        top_t = tl.div_rn(top_t, t)
        tops_t = tl.div_rn(tops_t, t)
    # In fp64 as above, so that both sums are one where the temperature is 1.
    scales = tl.exp(tops_t.to(tl.float64) - top_t.to(tl.float64))
    weights = tl.load(own + 2 * K, mask=tiles < K, other=0.0) * scales
    total = tl.sum(weights, 0)
    target = uniform * total
    k = _first_above(tl.cumsum(weights, 0), weights, target, tiles, TILES)
    if HAS_TEMPERATURE:
        k = tl.where(is_greedy, tl.min(tl.where(tops == top, tiles, TILES), 0), k)
    k = tl.minimum(k, K - 1)
    before = tl.sum(tl.where(tiles < k, weights, 0.0), 0)
    share = (target - before) / tl.sum(tl.where(tiles == k, weights, 0.0), 0)

    at = k * TILE + tl.arange(0, TILE)
    x = tl.load(logits + b * stride + at, mask=at < V, other=-float("inf"))
    tile_top = tl.max(tl.where(tiles == k, tops, -float("inf")), 0).to(tl.float32)
    tokens = _weights(x, tile_top, t, HAS_TEMPERATURE).to(tl.float64)
    places = tl.arange(0, TILE)
    place = _first_above(tl.cumsum(tokens, 0), tokens, share * tl.sum(tokens, 0), places, TILE)
    if HAS_TEMPERATURE:
        best = tl.min(tl.where(x == tile_top, places, TILE), 0)
        place = tl.where(is_greedy, best, place)
    token = tl.minimum(k * TILE + place, V - 1)

    own_x = tl.load(logits + b * stride + token)
    raw = (own_x.to(tl.float64) - top) - tl.log(total_raw)
    shaped = raw
    if HAS_TEMPERATURE:
        own_t = tl.div_rn(own_x, t)
        shaped = (own_t.to(tl.float64) - top_t.to(tl.float64)) - tl.log(total)
        shaped = tl.where(is_greedy, 0.0, shaped)
    tl.store(ids + b, token.to(tl.int64))
    tl.store(logprobs + b, raw.to(tl.float32))
    tl.store(processed + b, shaped.to(tl.float32))
