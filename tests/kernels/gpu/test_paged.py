"""The kernels over a paged cache, in Triton's interpreter, against the plain forms."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from nalar.kernels import attention, switch
from nalar.kernels.paging import Paging

pytest.importorskip("triton")
from nalar.kernels.gpu import paged

pytestmark = pytest.mark.few(1)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _poisoned():
    """What nobody writes is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def made(lengths, *, width, tokens=1, size=4, spare=3, dtype=torch.float32, seed=0):
    """A cache that is NaN wherever no row has a token, rows' last tokens, and tables with junk behind each row.

    A row of length 0 is nobody's: position 0 of block 0, where the cache holds numbers.
    """
    gen = torch.Generator().manual_seed(seed)
    counts = [-(-n // size) for n in lengths]
    M = max(counts) + spare
    blocks = torch.randperm(sum(counts) + 2, generator=gen) + 1
    cache = torch.full((len(blocks) + 1, size, width), torch.nan, dtype=dtype)
    cache[0] = 5.0
    tables = blocks[-1].repeat(len(lengths), M)  # of which every number is NaN
    start, positions = 0, []
    for row, (n, count) in enumerate(zip(lengths, counts, strict=True)):
        if not n:
            tables[row] = 0
        own = blocks[start : start + count]
        tables[row, :count], start = own, start + count
        entries = cache[own].flatten(0, 1)
        entries[:n] = torch.randn(n, width, generator=gen).to(dtype)
        cache[own] = entries.unflatten(0, (count, size)) if count else cache[own]
        positions.append(torch.arange(n - tokens, n).clamp(min=0))
    return cache.to(DEVICE), tables.to(DEVICE), torch.cat(positions).to(DEVICE)


def plain(cache, tables, positions, first, attend):
    """Row after row, of the keys that a token sees alone; zeros where there is none."""
    Q = len(positions) // len(tables)
    out = []
    for i, at in enumerate(positions.tolist()):
        entries = cache[tables[i // Q]].flatten(0, 1)[first : at + 1].float()
        out.append(attend(i, entries))
    return torch.stack(out)


LENGTHS = [[1], [0, 5, 40, 0], [65, 3, 64, 1, 17]]


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize(
    ("shape", "tokens", "first"),
    [((4, 32, 16), 1, 0), ((2, 20, 8), 3, 0), ((5, 40, 4), 1, 1), ((34, 16, 16), 2, 0)],
)
def test_latent_attention_is_softmax_written_out(monkeypatch, shape, tokens, first, parts):
    monkeypatch.setattr(paged, "num_parts", lambda *_: parts)
    monkeypatch.setattr(paged, "LATENT_TILES", {64: paged.Tiles(16, 4, 2)})
    (H, R, P), W = shape, 20
    for lengths in LENGTHS:
        lengths = [max(n, tokens) if n else 0 for n in lengths]
        cache, tables, positions = made(lengths, width=R + P, tokens=tokens)
        gen = torch.Generator().manual_seed(1)
        # Queries as the model has them: strided, heads outside.
        q = torch.randn(H, len(positions), R, generator=gen).transpose(0, 1)
        turned = torch.randn(len(positions), H, 3 + P, generator=gen)[..., 3:]
        values = torch.randn(H, 5 + W, R, generator=gen)[:, 5:]
        q, turned, values = (x.to(DEVICE) for x in (q, turned, values))

        def attend(i, entries, q=q, turned=turned, values=values):
            if not len(entries):
                return torch.zeros(H, W, device=DEVICE)
            scores = torch.cat([q[i], turned[i]], -1) @ entries.T * 0.3
            return torch.einsum("hr,hwr->hw", scores.softmax(-1) @ entries[:, :R], values)

        got = paged.latent_attention(
            q, turned, values, cache, tables, positions, first=first, scale=0.3
        )
        assert_close(got, plain(cache, tables, positions, first, attend), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize(
    ("H", "G", "K", "tokens", "first"),
    [(4, 2, 16, 1, 0), (6, 2, 12, 3, 0), (4, 4, 32, 1, 1), (8, 1, 8, 1, 0), (34, 1, 8, 2, 0)],
)
def test_grouped_attention_is_softmax_written_out(monkeypatch, H, G, K, tokens, first, parts):
    monkeypatch.setattr(paged, "num_parts", lambda *_: parts)
    monkeypatch.setattr(paged, "GROUPED_TILES", {64: paged.Tiles(16, 4, 2)})
    for lengths in LENGTHS:
        lengths = [max(n, tokens) if n else 0 for n in lengths]
        cache, tables, positions = made(lengths, width=2 * G * K, tokens=tokens)
        q = torch.randn(len(positions), H, K, generator=torch.Generator().manual_seed(1))
        q = q.to(DEVICE)

        def attend(i, entries, q=q):
            k, v = entries.unflatten(-1, (2, G, K)).repeat_interleave(H // G, 2).unbind(1)
            if not len(entries):
                return torch.zeros(H, K, device=DEVICE)
            weights = torch.einsum("hk,thk->ht", q[i], k).mul(0.3).softmax(-1)
            return torch.einsum("ht,thk->hk", weights, v)

        got = paged.grouped_attention(q, cache, tables, positions, groups=G, first=first, scale=0.3)
        assert_close(got, plain(cache, tables, positions, first, attend), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_latent", [True, False])
def test_the_dispatcher_gives_in_half_precision_what_the_plain_form_gives(is_latent):
    """The tiles of the table, at a published width; and the mask, which costs as much as a cache, is not made."""
    H, G, K, R, P = 4, 2, 128, 256, 32
    width = R + P if is_latent else 2 * G * K
    cache, tables, positions = made([70, 3, 41], width=width, size=32, dtype=torch.float16)
    cache = cache.nan_to_num(2.0)  # which the plain form multiplies by 0
    gen = torch.Generator().manual_seed(1)
    q, turned = (torch.randn(3, H, w, generator=gen).half() for w in (R if is_latent else K, P))
    values = (torch.randn(H, 64, R, generator=gen) / 16).half()
    q, turned, values = (x.to(DEVICE) for x in (q, turned, values))
    paging = Paging(positions, positions, tables_BM=tables)
    asked = []

    def hidden():
        asked.append(1)
        return paging.hidden(32, torch.float16)()

    def attend():
        if is_latent:
            return attention.paged_latent_attention(
                q, turned, values, cache, paging, hidden, scale=0.1
            )
        return attention.paged_grouped_attention(q, cache, paging, hidden, num_groups=G, scale=0.1)

    with torch.no_grad():
        with switch.forced("paged_attention"):
            got = attend()
            assert not asked
        expected = attend()
        assert asked
    assert got.dtype == torch.float16
    assert_close(got, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("cache", "width", "why"),
    [
        (torch.zeros(2, 6, 20), 16, "6 slots, not a power of two"),
        (torch.zeros(2, 4, 700), 513, "513 numbers a key, above 512"),
        (torch.zeros(2, 4, 20, dtype=torch.float64), 16, "torch.float64"),
        (torch.zeros(2, 20, 4).transpose(1, 2), 16, "strided"),
        (torch.zeros(2, 32, 288), 256, None),
    ],
)
def test_what_it_does_not_take_is_said(cache, width, why):
    said = paged.why_not(cache, width, is_latent=True)
    assert said is None if why is None else why in said


def test_parts_fill_the_machine_and_depend_on_the_launch_shape_alone():
    for programs, keys in itertools.product((1, 2, 7, 64, 132, 256, 2048), (1, 32, 257, 1 << 20)):
        parts = paged.num_parts(programs, keys, 32)
        assert parts & (parts - 1) == 0 and 1 <= parts <= paged.MOST_PARTS
        assert parts == 1 or (parts * programs <= paged.PROGRAMS and parts * 16 < keys)
    assert paged.num_parts(1, 257, 32) == 16
    assert paged.num_parts(64, 1 << 20, 32) == 4
    assert paged.num_parts(256, 1 << 20, 32) == 1
