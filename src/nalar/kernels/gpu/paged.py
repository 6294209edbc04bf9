"""A few queries a row over a paged cache, split over the keys (arXiv:2311.01282): latent and grouped attention.

One program takes the queries of a row that share keys (all heads of its tokens, or those of a group), and one part of
the row's keys, which it reads once. Parts are cut by the row's own length, so work is even whatever the tables can
hold; their number is one of the launch shape alone. Where there is more than one, a second kernel joins them.
"""

# N tokens, B rows of Q each · H heads · G groups of heads · X queries of one program · M blocks of a row, of S slots
# R latent, or width of a head · P rotated width · W value width · T keys of a tile · C what a token has in the cache

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nalar.kernels.gpu.linked import linked, wait
from nalar.kernels.projections import head_by_head

LOG2_E = 1.4426950408889634
MOST_QUERIES = 64
"""X at most; more go to more programs, each of which reads the keys again."""
PROGRAMS = 264
"""Parts are made until there are about this many programs: two for each of an H200's 132 multiprocessors."""
MOST_PARTS = 128
FEW, BLOCK_W = 4, 16
"""Of so many tokens, what joins the parts of latent attention makes values of them too, so many to a program."""


class Parts(NamedTuple):
    """What a part of the keys gives: float32; where it has none, a sum of -inf and numbers that mean nothing."""

    mixed_NHXR: Tensor
    lse_NHX: Tensor
    """Base 2."""


class Tiles(NamedTuple):
    keys: int
    """T"""
    warps: int
    stages: int
    """Keys are loaded (stages - 1) // 2 tiles ahead: the numbers of their blocks must be there before."""


LATENT_TILES = {64: Tiles(64, 4, 5), 256: Tiles(32, 4, 5), 512: Tiles(32, 8, 3)}
"""By the largest R, padded. 256 is measured on an H200: other tiles are level at 64 rows, and worse at 256."""
GROUPED_TILES = {64: Tiles(64, 4, 5), 128: Tiles(64, 4, 5), 256: Tiles(32, 4, 5)}
"""By the largest width of a head, padded. At 128, 93% of the roofline with 256 rows on an H200."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def why_not(cache_PSC: Tensor, width: int, *, is_latent: bool) -> str | None:
    """What these kernels do not take, if anything: R, or the width of a head, and the cache's own shape."""
    size, most = cache_PSC.shape[1], max(LATENT_TILES if is_latent else GROUPED_TILES)
    if size & (size - 1):
        return f"blocks of {size} slots, not a power of two"
    if width > most:
        return f"{width} numbers a key, above {most}"
    if cache_PSC.dtype not in DTYPES:
        return f"a cache of {cache_PSC.dtype}"
    return None if cache_PSC.stride(2) == 1 else "a cache whose last dimension is strided"


def latent_attention(
    q_NHR: Tensor,
    q_NHP: Tensor,
    v_HWR: Tensor,
    cache_PSC: Tensor,
    tables_BM: Tensor,
    positions_N: Tensor,
    *,
    first: int,
    scale: float,
) -> Tensor:
    """Absorbed queries in two parts, against latents and rotated keys: [N, H, W], the values of weighted latents.

    Any strides but the last's, which is 1. cache_PSC: R then P numbers a token, of the queries' dtype;
    tables_BM, positions_N: int64. A token sees `first` up to its position, zeros come where that is nothing;
    beyond a row's last position no block is read, and the table may hold anything.
    """
    parts = _attend(q_NHR, q_NHP, cache_PSC, tables_BM, positions_N, 1, None, first, scale)
    if isinstance(parts, Parts) and len(q_NHR) <= FEW:
        return _join(parts, q_NHR.dtype, v_HWR)
    mixed_NHR = _join(parts, q_NHR.dtype) if isinstance(parts, Parts) else parts
    return head_by_head(mixed_NHR, v_HWR.transpose(1, 2))


def grouped_attention(
    q_NHK: Tensor,
    cache_PSC: Tensor,
    tables_BM: Tensor,
    positions_N: Tensor,
    *,
    groups: int,
    first: int,
    scale: float,
) -> Tensor:
    """Queries of H heads against G of keys and values: [N, H, K]. cache_PSC: keys [G, K], then values [G, K].

    Otherwise as `latent_attention`.
    """
    values_at = groups * q_NHK.shape[2]
    parts = _attend(q_NHK, None, cache_PSC, tables_BM, positions_N, groups, values_at, first, scale)
    return _join(parts, q_NHK.dtype) if isinstance(parts, Parts) else parts


def num_parts(programs: int, most_keys: int, tile: int) -> int:
    """Into how many parts the keys of each row are cut: a power of two that depends on the launch shape alone."""
    tiles = int(triton.next_power_of_2(-(-most_keys // tile)))
    wanted = min(PROGRAMS // programs, tiles, MOST_PARTS)
    return 1 << max(wanted, 1).bit_length() - 1


def _attend(
    q_NHR: Tensor,
    q_NHP: Tensor | None,
    cache_PSC: Tensor,
    tables_BM: Tensor,
    positions_N: Tensor,
    groups: int,
    values_at: int | None,
    first: int,
    scale: float,
) -> Tensor | Parts:
    """Whole, where the keys are in one part."""
    (N, H, R), (B, M), S = q_NHR.shape, tables_BM.shape, cache_PSC.shape[1]
    if tables_BM.stride(1) != 1:
        tables_BM = tables_BM.contiguous()
    each = N // B * (H // groups)
    block_x = min(max(16, triton.next_power_of_2(each)), MOST_QUERIES)
    blocks = groups * triton.cdiv(each, block_x)
    block_r = max(16, triton.next_power_of_2(R))
    table = LATENT_TILES if values_at is None else GROUPED_TILES
    tiles = table[min(width for width in table if width >= block_r)]
    parts = num_parts(B * blocks, M * S, tiles.keys)
    dtype = q_NHR.dtype if parts == 1 else torch.float32
    mixed_NHXR = torch.empty((N, H, parts, R), dtype=dtype, device=q_NHR.device)
    lse_NHX = mixed_NHXR.new_empty((N, H, parts) if parts > 1 else 0)
    P = 0 if q_NHP is None else q_NHP.shape[2]
    turned = q_NHR if q_NHP is None else q_NHP
    _attend_part[(B, blocks, parts)](
        q_NHR,
        turned,
        cache_PSC,
        tables_BM,
        positions_N,
        mixed_NHXR,
        lse_NHX,
        first,
        scale * LOG2_E,
        *q_NHR.stride()[:2],
        *turned.stride()[:2],
        *cache_PSC.stride()[:2],
        tables_BM.stride(0),
        VALUES_AT=-1 if values_at is None else values_at,
        H=H,
        SHARING=H // groups,
        QUERIES=N // B,
        R=R,
        P=P,
        S=S,
        PARTS=parts,
        BLOCK_X=block_x,
        BLOCK_T=tiles.keys,
        BLOCK_R=block_r,
        BLOCK_P=max(16, triton.next_power_of_2(P)),
        num_warps=tiles.warps,
        num_stages=1 if q_NHR.dtype == torch.float32 else tiles.stages,
        **linked(q_NHR),
    )
    return mixed_NHXR[:, :, 0] if parts == 1 else Parts(mixed_NHXR, lse_NHX)


def _join(parts: Parts, dtype: torch.dtype, v_HWR: Tensor | None = None) -> Tensor:
    """[N, H, R], or with v_HWR its values [N, H, W]."""
    N, H, num, R = parts.mixed_NHXR.shape
    W = R if v_HWR is None else v_HWR.shape[1]
    out = torch.empty((N, H, W), dtype=dtype, device=parts.mixed_NHXR.device)
    values = parts.mixed_NHXR if v_HWR is None else v_HWR
    # Each program of a head joins its parts again: they are in the cache, and the values are read but once.
    _join_parts[(N * H, 1 if v_HWR is None else triton.cdiv(W, BLOCK_W))](
        *parts,
        values,
        out,
        *values.stride()[:2],
        H=H,
        R=R,
        W=0 if v_HWR is None else W,
        PARTS=num,
        BLOCK_R=triton.next_power_of_2(R),
        BLOCK_W=BLOCK_W,
        num_warps=4,
        **linked(parts.mixed_NHXR),
    )
    return out


@triton.jit
def _weigh(scores, is_seen, best, total):
    """One tile of online softmax: the new maximum and sum, what sums so far are worth by it, the tile's weights."""
    scores = tl.where(is_seen, scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen so far
    kept = tl.exp2(best - base)
    weights = tl.exp2(scores - base[:, None])
    return higher, total * kept + tl.sum(weights, 1), kept, weights


# Of arguments that change from step to step there is one program, not one for each kind of number.
@triton.jit(
    do_not_specialize=["first", "table_row"],
    do_not_specialize_on_alignment=["tables_ptr", "positions_ptr"],
)
def _attend_part(
    q_ptr,
    turned_ptr,
    cache_ptr,
    tables_ptr,
    positions_ptr,
    part_ptr,
    lse_ptr,
    first,
    scale,
    q_token,
    q_head,
    turned_token,
    turned_head,
    cache_block,
    cache_slot,
    table_row,
    VALUES_AT: tl.constexpr,  # -1: the keys are the values
    H: tl.constexpr,
    SHARING: tl.constexpr,  # heads of queries to one of keys
    QUERIES: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    LINKED: tl.constexpr,
):
    """Online softmax (arXiv:1805.02867) over one part of a row's keys, in float32 and powers of two."""
    wait(LINKED)
    BLOCKS: tl.constexpr = (QUERIES * SHARING + BLOCK_X - 1) // BLOCK_X
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) // BLOCKS
    part = tl.program_id(2)
    x = tl.program_id(1) % BLOCKS * BLOCK_X + tl.arange(0, BLOCK_X)
    is_query = x < QUERIES * SHARING
    token = row * QUERIES + x // SHARING
    head = group * SHARING + x % SHARING
    position = tl.load(positions_ptr + token, mask=is_query, other=-1).to(tl.int32)
    end = tl.max(position, 0) + 1
    tiles = tl.cdiv(end - first, BLOCK_T)
    each = tl.cdiv(tiles, PARTS) * BLOCK_T
    start = first + part * each
    stop = tl.minimum(end, start + each)
    out = (token * H + head) * PARTS + part
    if PARTS > 1 and start >= stop:
        tl.store(lse_ptr + out, tl.full([BLOCK_X], float("-inf"), tl.float32), mask=is_query)
        return

    r = tl.arange(0, BLOCK_R)
    p = tl.arange(0, BLOCK_P)
    is_r = is_query[:, None] & (r < R)[None, :]
    q = tl.load(
        q_ptr + (token * q_token + head * q_head)[:, None] + r[None, :], mask=is_r, other=0.0
    )
    if P > 0:
        turned = tl.load(
            turned_ptr + (token * turned_token + head * turned_head)[:, None] + p[None, :],
            mask=is_query[:, None] & (p < P)[None, :],
            other=0.0,
        )
    best = tl.full([BLOCK_X], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_X], tl.float32)
    mixed = tl.zeros([BLOCK_X, BLOCK_R], tl.float32)
    for tile in range(start, stop, BLOCK_T):
        t = tile + tl.arange(0, BLOCK_T)
        is_key = t < stop
        block = tl.load(tables_ptr + row * table_row + t // S, mask=is_key, other=0)
        entry = cache_ptr + block * cache_block + (t % S) * cache_slot
        at = entry[:, None] + r[None, :] + group * (R if VALUES_AT >= 0 else 0)
        is_in = is_key[:, None] & (r < R)[None, :]
        k = tl.load(at, mask=is_in, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if P > 0:
            turned_k = tl.load(
                entry[:, None] + R + p[None, :],
                mask=is_key[:, None] & (p < P)[None, :],
                other=0.0,
            )
            scores = tl.dot(turned, tl.trans(turned_k), scores, input_precision="ieee")
        is_seen = is_key[None, :] & (t[None, :] <= position[:, None])
        best, total, kept, weights = _weigh(scores * scale, is_seen, best, total)
        mixed = mixed * kept[:, None]
        if VALUES_AT >= 0:
            v = tl.load(at + VALUES_AT, mask=is_in, other=0.0)
            mixed = tl.dot(weights.to(v.dtype), v, mixed, input_precision="ieee")
        else:
            mixed = tl.dot(weights.to(k.dtype), k, mixed, input_precision="ieee")

    some = total > 0.0
    mixed = mixed / tl.where(some, total, 1.0)[:, None]
    if PARTS > 1:
        lse = tl.where(some, best + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
        tl.store(lse_ptr + out, lse, mask=is_query)
    tl.store(part_ptr + (out * R)[:, None] + r[None, :], mixed, mask=is_r)


@triton.jit
def _join_parts(
    part_ptr,
    lse_ptr,
    values_ptr,
    out_ptr,
    value_head,
    value_row,
    H: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,  # 0: no values are made
    PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
    LINKED: tl.constexpr,
):
    """The parts of one token and head, by their sums' base-2 logarithms; of one that is -inf nothing is read."""
    wait(LINKED)
    STEP: tl.constexpr = min(PARTS, 8)
    at = tl.program_id(0).to(tl.int64)
    lse = tl.load(lse_ptr + at * PARTS + tl.arange(0, PARTS))
    best = tl.max(lse, 0)
    best = tl.where(best == float("-inf"), 0.0, best)
    total = tl.sum(tl.exp2(lse - best), 0)
    r = tl.arange(0, BLOCK_R)
    out = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, PARTS, STEP):
        part = start + tl.arange(0, STEP)
        own = tl.load(lse_ptr + at * PARTS + part)
        mixed = tl.load(
            part_ptr + ((at * PARTS + part) * R)[:, None] + r[None, :],
            mask=(own > float("-inf"))[:, None] & (r < R)[None, :],
            other=0.0,
        )
        out += tl.sum(mixed * tl.exp2(own - best)[:, None], 0)
    out = (out / tl.where(total > 0.0, total, 1.0)).to(out_ptr.dtype.element_ty)
    if W == 0:
        tl.store(out_ptr + at * R + r, out, mask=r < R)
    else:
        wide = out.to(tl.float32)[None, :]
        values_ptr += at % H * value_head
        w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
        values = tl.load(
            values_ptr + (w * value_row)[:, None] + r[None, :],
            mask=(w < W)[:, None] & (r < R)[None, :],
            other=0.0,
        )
        tl.store(out_ptr + at * W + w, tl.sum(values.to(tl.float32) * wide, 1), mask=w < W)
