"""What tokens leave in the cache, by kernels in Triton's interpreter and without."""

import pytest
import torch
from torch.testing import assert_close

from nalar.kernels import switch
from nalar.kernels.rotary import grouped_entries, latent_entries

pytest.importorskip("triton")

pytestmark = pytest.mark.few(2)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS = torch.tensor([9, 0, 4, 15, 0, 2], device=DEVICE)  # two of nobody, in block 0
BLOCKS, SIZE = 5, 4


@pytest.fixture(autouse=True)
def _poisoned():
    """What nobody writes is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def turns(width):
    angle = normal(len(SLOTS), width // 2, seed=9)
    return torch.polar(torch.full_like(angle, 1.1), angle)  # YaRN makes them longer than 1


def check(enter, width, dtype):
    """Both forms over a cache of junk: the same queries, kept entries and slots, and nothing written elsewhere."""
    plain, own = (
        torch.full((BLOCKS, SIZE, width), 7.0, dtype=dtype, device=DEVICE) for _ in range(2)
    )
    for kept in (0, 4):
        expected = enter(plain, kept)
        with switch.forced("rotary"):
            got = enter(own, kept)
        assert got[-1].shape == (kept, width)
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other, equal_nan=False)
    own, plain = own.flatten(0, 1), plain.flatten(0, 1)
    assert_close(own[1:], plain[1:])
    assert own[0].isfinite().all()  # of either of those that wrote there
    untouched = [i for i in range(BLOCKS * SIZE) if i not in SLOTS.tolist()]
    assert (own[untouched] == 7).all()


@torch.no_grad()
@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("H", "R", "P"), [(5, 20, 8), (4, 32, 16), (1, 16, 6)])
def test_latents_and_keys_are_entered_as_by_the_plain_form(H, R, P, dtype, interleave):
    queries, kv = normal(len(SLOTS), H, 4 + P).to(dtype), normal(len(SLOTS), R + P, seed=1)
    weight, absorbing = normal(R, seed=2).to(dtype), normal(H, 4 + 3, R, seed=3).to(dtype)

    def enter(cache, kept, tokens=slice(None), absorbed=2):
        return latent_entries(
            queries[tokens, :, :4],
            queries[tokens, :, 4:],
            kv[tokens].to(dtype),
            turns(P)[tokens],
            weight,
            absorbing[:, 3:],
            SLOTS[tokens],
            cache,
            eps=1e-6,
            interleave=interleave,
            num_kept=kept,
            num_absorbed=absorbed,
        )

    check(enter, R + P, dtype)
    # Few tokens, and all of rows: one launch absorbs their queries too.
    plain, own = (torch.zeros(BLOCKS, SIZE, R + P, dtype=dtype, device=DEVICE) for _ in range(2))
    for tokens in (slice(0, 1), slice(2, 4)):
        absorbed = tokens.stop - tokens.start
        expected = enter(plain, 0, tokens, absorbed)
        with switch.forced("rotary"):
            got = enter(own, 0, tokens, absorbed)
        tolerance = {} if dtype == torch.float32 else {"rtol": 2e-3, "atol": 2e-3}
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other, equal_nan=False, **tolerance)
    assert_close(own, plain)


@torch.no_grad()
@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("is_normed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("H", "G", "K"), [(6, 3, 12), (8, 1, 16), (5, 5, 8)])
def test_keys_and_values_are_entered_as_by_the_plain_form(H, G, K, dtype, is_normed, interleave):
    q, k, v = (normal(len(SLOTS), n, K, seed=n).to(dtype) for n in (H, G, G + 1))
    weights = (normal(K, seed=3).to(dtype), normal(K, seed=4).to(dtype)) if is_normed else None

    def enter(cache, kept):
        return grouped_entries(
            q,
            k,
            v[:, 1:],
            turns(K),
            weights,
            SLOTS,
            cache,
            eps=1e-6,
            interleave=interleave,
            num_kept=kept,
        )

    check(enter, 2 * G * K, dtype)


@torch.no_grad()
def test_a_cache_that_the_kernel_does_not_take_is_written_without_it():
    cache = torch.zeros(2, 4, 20, dtype=torch.float64, device=DEVICE)
    q, kv = normal(1, 2, 4).double(), normal(1, 20).double()
    with switch.forced("rotary"):
        latent_entries(
            q,
            q,
            kv,
            turns(4)[:1],
            torch.ones(16, device=DEVICE).double(),
            normal(2, 4, 16).double(),
            torch.tensor([5], device=DEVICE),
            cache,
            eps=1e-6,
            interleave=True,
            num_kept=0,
            num_absorbed=1,
        )
    assert cache[1, 1].abs().min() > 0
