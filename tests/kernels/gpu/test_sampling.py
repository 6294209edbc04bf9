"""The kernel of the draw, under Triton's interpreter where there is no GPU."""

import math

import pytest
import torch

from nalar.kernels import switch
from nalar.kernels.sampling import (
    Changes,
    Drawn,
    Penalties,
    Shaping,
    draw,
    sample,
    stream_key,
    uniforms,
)

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from nalar.kernels.gpu import sampling  # noqa: E402

pytestmark = pytest.mark.few(3)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
V = 2500  # three tiles, the last one ragged
ROWS = 60 if DEVICE == "cuda" else 18  # the interpreter takes them one by one


def logits_of(num_rows, width=V, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_rows, width, generator=generator) * scale).to(DEVICE)


def streams(num_rows, seed=0):
    keys = torch.tensor([stream_key(seed, i) for i in range(num_rows)], device=DEVICE)
    return keys, torch.arange(num_rows, device=DEVICE) * 5


def plainly(*args, **kwargs):
    with switch.forced("sample", on=False):
        return draw(*args, **kwargs)


def by_kernel(*args, **kwargs):
    with switch.forced("sample"):
        return draw(*args, **kwargs)


def fields(drawn: Drawn):
    return drawn.ids_B, drawn.logprobs_B, drawn.processed_B


def assert_agree(found, expected, *, most_others=0):
    """Same tokens, but for so many on a boundary; log-probabilities of the same tokens to rounding."""
    same = found.ids_B == expected.ids_B
    assert int((~same).sum()) <= most_others
    for a, b in zip(fields(found)[1:], fields(expected)[1:], strict=True):
        torch.testing.assert_close(a[same], b[same], rtol=0, atol=5e-6)


def assert_equal(found, expected):
    for a, b in zip(fields(found), fields(expected), strict=True):
        assert torch.equal(a, b)


@triton.jit
def _store_uniforms(keys, counters, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, sampling._uniform(tl.load(keys + at), tl.load(counters + at)))


def test_its_random_numbers_are_those_of_the_plain_form_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**63), 2**63 - 1, (512,), generator=generator)
    counters = torch.randint(0, 2**40, (512,), generator=generator)
    keys[:4], counters[:4] = torch.tensor([0, -1, -(2**63), 2**63 - 1]), torch.tensor([1, 0, 0, 9])
    keys, counters = keys.to(DEVICE), counters.to(DEVICE)
    found = torch.full((512,), math.nan, dtype=torch.float64, device=DEVICE)
    _store_uniforms[(1,)](keys, counters, found, N=512)
    assert torch.equal(found, uniforms(keys, counters))


@pytest.mark.few(2)
@pytest.mark.parametrize("width", [1, 1025, V, 7, 1024])
def test_it_draws_the_tokens_of_the_plain_form(width):
    logits_BV, uniform_B = logits_of(ROWS, width), uniforms(*streams(ROWS))
    assert_agree(by_kernel(logits_BV, uniform_B), plainly(logits_BV, uniform_B))


@pytest.mark.slow
def test_tokens_differ_from_the_plain_form_only_within_rounding_of_a_boundary():
    """A flat distribution has most boundaries: here 2,500 of them."""
    logits_BV, uniform_B = logits_of(150, scale=0.3), uniforms(*streams(150))
    found, expected = by_kernel(logits_BV, uniform_B), plainly(logits_BV, uniform_B)
    assert_agree(found, expected, most_others=1)
    other = found.ids_B != expected.ids_B
    assert ((found.ids_B - expected.ids_B)[other].abs() <= 1).all()


def test_it_follows_each_rows_temperature():
    logits_BV, uniform_B = logits_of(ROWS), uniforms(*streams(ROWS))
    kind_B = torch.arange(ROWS) % 6
    warm_B = torch.tensor([1.0, 0.6, 0.0, 1.7, 1e-30, 1e-4], device=DEVICE)[kind_B]
    logits_BV[2::6, 1000] = logits_BV[2::6, 2000] = 50.0  # of equal logits the lowest id
    shaping = Shaping.by_temperature(warm_B, V)
    found = by_kernel(logits_BV, uniform_B, shaping)
    assert_agree(found, plainly(logits_BV, uniform_B, shaping))
    assert set(found.ids_B[2::6].tolist()) == {1000}
    assert (found.processed_B[2::6] == 0).all()


@pytest.mark.slow
def test_draws_follow_the_softmax():
    probs_V = torch.tensor([0.02, 0.4, 0.0, 0.1, 0.3, 0.08, 0.1])
    num_rows = 400
    keys, counters = streams(num_rows)
    with switch.forced("sample"):
        drawn = sample(probs_V.log().expand(num_rows, -1).contiguous().to(DEVICE), keys, counters)
    counts = torch.bincount(drawn.ids_B.cpu(), minlength=7)
    assert counts[2] == 0
    possible = probs_V > 0
    expected = (probs_V * num_rows)[possible]
    # 5 degrees of freedom: above 25.7 with probability 1e-4.
    assert float(((counts[possible] - expected) ** 2 / expected).sum()) < 25.7


@pytest.mark.few(1)
@pytest.mark.parametrize("is_warm", [False, True])
def test_keys_and_temperatures_are_gathered_by_row(is_warm):
    logits_BV = logits_of(9)
    keys, counters = streams(20)[0], streams(9)[1]
    warm = torch.linspace(0, 2, 20, device=DEVICE) if is_warm else None
    rows_B = torch.tensor([3, 19, 0, 7, 7, 12, 1, 2, 18], device=DEVICE)
    of_rows = None if warm is None else warm[rows_B]
    with switch.forced("sample"):
        found = sample(logits_BV, keys, counters, warm, rows_B)
        gathered = sample(logits_BV, keys[rows_B], counters, of_rows)
    assert_equal(found, gathered)
    with switch.forced("sample", on=False):
        assert_agree(found, sample(logits_BV, keys, counters, warm, rows_B))


@pytest.mark.slow
def test_a_row_draws_the_same_whatever_stands_beside_it():
    """Also beside rows that the plain form has to compute, and by whichever way it is asked for."""
    B = 15
    logits_BV = logits_of(B)
    keys, counters = streams(B)
    uniform_B = uniforms(keys, counters)
    kind_B = torch.arange(B, device=DEVICE) % 5
    warm_B = torch.tensor([1.0, 1.0, 0.7, 0.0, 1.0], device=DEVICE)[kind_B]
    top_k_B = torch.tensor([V, 40, V, V, V], device=DEVICE)[kind_B]
    ones_B, zeros_B = torch.ones(B, device=DEVICE), torch.zeros(B, device=DEVICE)
    penalties = Penalties(
        torch.tensor([1.0, 1.0, 1.0, 1.0, 1.3], device=DEVICE)[kind_B],
        zeros_B,
        zeros_B,
        torch.ones(B, V, dtype=torch.int32, device=DEVICE),
        torch.zeros(B, V, dtype=torch.bool, device=DEVICE),
    )
    shaping = Shaping(warm_B, top_k_B, ones_B, zeros_B, cuts=True, penalties=penalties)
    forced = (torch.tensor([5], device=DEVICE), torch.tensor([77], device=DEVICE))
    mixed = by_kernel(logits_BV, uniform_B, shaping, Changes(forced=forced))
    alone = by_kernel(logits_BV, uniform_B)
    warm = by_kernel(logits_BV, uniform_B, Shaping.by_temperature(warm_B, V))
    with switch.forced("sample"):
        small = [
            sample(logits_BV[i : i + 1], keys[i : i + 1], counters[i : i + 1]) for i in (0, 10)
        ]
    whole = plainly(logits_BV, uniform_B, shaping, Changes(forced=forced))
    for name in ("ids_B", "logprobs_B", "processed_B"):
        found = getattr(mixed, name)
        as_model, by_warmth = (kind_B == 0), (kind_B == 2) | (kind_B == 3)
        as_model[5] = False
        assert torch.equal(found[as_model], getattr(alone, name)[as_model])
        assert torch.equal(found[as_model], getattr(warm, name)[as_model])
        assert torch.equal(found[by_warmth], getattr(warm, name)[by_warmth])
        assert [getattr(one, name).item() for one in small] == found[[0, 10]].tolist()
        changed = (kind_B == 1) | (kind_B == 4)
        changed[5] = True
        assert torch.equal(found[changed], getattr(whole, name)[changed])
    assert mixed.ids_B[5] == 77


def test_it_never_lands_on_a_token_without_weight_or_beyond_the_last():
    logits_BV = torch.full((6, V), -math.inf, device=DEVICE)
    logits_BV[:, 1300] = 0.0  # tiles before and behind hold nothing
    logits_BV[3:, 1310] = 1.0
    logits_BV[5, [0, V - 1]] = -80.0
    highest = 1 - 2.0**-53
    uniform_B = torch.tensor([0.0, highest, 1.0, 0.0, highest, highest], dtype=torch.float64)
    found = by_kernel(logits_BV, uniform_B.to(DEVICE))
    assert found.ids_B.tolist()[:5] == [1300, 1300, 1300, 1300, 1310]
    assert found.ids_B[5] in (1310, V - 1)
    assert found.logprobs_B[:3].tolist() == [0, 0, 0]


def test_logits_that_are_no_numbers_are_told_by_the_logprob():
    logits_BV = logits_of(7)
    logits_BV[0, 17] = math.nan
    logits_BV[1, V - 1] = math.inf
    logits_BV[2] = -math.inf
    logits_BV[3] = math.nan
    logits_BV[4, :1024] = math.nan
    logits_BV[5, 3] = -math.inf
    for shaping in (None, Shaping.by_temperature(torch.full((7,), 0.5, device=DEVICE), V)):
        found = by_kernel(logits_BV, uniforms(*streams(7)), shaping)
        assert found.logprobs_B.isfinite().tolist() == [False] * 5 + [True] * 2
        assert ((found.ids_B >= 0) & (found.ids_B < V)).all()


def test_rows_may_stand_apart_in_memory():
    wide = torch.full((8, V + 60), math.nan, device=DEVICE)
    wide[:, :V] = logits_of(8)
    uniform_B = uniforms(*streams(8))
    # Compiled for another alignment, it adds up in another order.
    assert_agree(by_kernel(wide[:, :V], uniform_B), by_kernel(logits_of(8), uniform_B))


def test_what_it_does_not_take_is_computed_plainly(caplog):
    switch.refuse.cache_clear()
    logits_BV, uniform_B = logits_of(4, 30).bfloat16(), uniforms(*streams(4))
    assert_equal(by_kernel(logits_BV, uniform_B), plainly(logits_BV, uniform_B))
    assert "kernel sample" in caplog.text


def test_no_rows_draw_nothing():
    found = by_kernel(logits_of(0), torch.empty(0, dtype=torch.float64, device=DEVICE))
    assert [len(x) for x in fields(found)] == [0, 0, 0]
