import math

import pytest
import torch

from nalar.engine.sampler import Shaping, sample, stream_key, uniforms

LOGITS_V = torch.tensor([0.1, 2.0, -1.0, 1.3, 0.7, -3.0, 1.3])


def shaping_of(num_rows, temperature=1.0, top_k=None, top_p=1.0):
    return Shaping(
        torch.full((num_rows,), temperature),
        torch.full((num_rows,), top_k or len(LOGITS_V)),
        torch.full((num_rows,), top_p),
        cuts=top_k is not None or top_p < 1,
    )


def spread(num_rows):
    """Uniform numbers that cover [0, 1) evenly: every reachable token is reached."""
    return (torch.arange(num_rows, dtype=torch.float64) + 0.5) / num_rows


def frequencies(shaping=None, banned=None, num_rows=20_000, logits_V=LOGITS_V):
    ids, _ = sample(logits_V.expand(num_rows, -1), spread(num_rows), shaping, banned)
    return torch.bincount(ids, minlength=len(logits_V)) / num_rows


def chi_square(ids, probs):
    expected = probs * len(ids)
    counts = torch.bincount(ids, minlength=len(probs))
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws_follow_the_softmax(temperature):
    num_rows = 20_000
    keys = torch.full((num_rows,), stream_key(seed=5, sample_id=3))
    u = uniforms(keys, torch.arange(num_rows))
    shaping = None if temperature == 1.0 else shaping_of(num_rows, temperature)
    ids, _ = sample(LOGITS_V.expand(num_rows, -1), u, shaping)
    # 6 degrees of freedom: above 27.9 with probability 1e-4.
    assert chi_square(ids, (LOGITS_V / temperature).softmax(-1)) < 27.9


def test_random_numbers_are_uniform_over_samples_positions_and_seeds():
    for keys, counters in (
        ([stream_key(0, i) for i in range(10_000)], 7),
        ([stream_key(i, 0) for i in range(10_000)], 7),
        ([stream_key(1, 1)] * 10_000, None),
    ):
        counters_B = torch.arange(10_000) if counters is None else torch.full((10_000,), counters)
        u = uniforms(torch.tensor(keys), counters_B)
        assert float(u.min()) >= 0 and float(u.max()) < 1
        # 9 degrees of freedom: above 33.7 with probability 1e-4.
        assert chi_square((u * 10).long(), torch.full((10,), 0.1)) < 33.7
        assert abs(float(torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1])) < 0.05


def test_random_numbers_are_splitmix64():
    # First output of the published generator started from state 0.
    published = 0xE220A8397B1DCDAF
    u = uniforms(torch.tensor([0]), torch.tensor([1]))
    assert float(u) == (published >> 11) * 2.0**-53


def test_logprobs_are_raw_whatever_shapes_the_draw():
    shaping = shaping_of(50, temperature=0.5, top_k=3, top_p=0.9)
    ids, logprobs = sample(LOGITS_V.expand(50, -1), spread(50), shaping, ([0, 1], [1, 3]))
    torch.testing.assert_close(logprobs, LOGITS_V.log_softmax(-1)[ids], rtol=0, atol=1e-6)
    assert logprobs.dtype == torch.float32


def test_temperature_zero_takes_the_best_token():
    assert frequencies(shaping_of(20_000, temperature=0.0))[1] == 1


def test_a_tiny_temperature_neither_overflows_nor_leaves_the_best_token():
    assert frequencies(shaping_of(20_000, temperature=1e-30))[1] == 1


@pytest.mark.parametrize(
    ("top_k", "support"), [(1, {1}), (2, {1, 3}), (3, {1, 3, 6}), (7, set(range(7)))]
)
def test_top_k_keeps_exactly_k_tokens(top_k, support):
    found = frequencies(shaping_of(20_000, top_k=top_k))
    assert set(found.nonzero()[:, 0].tolist()) == support
    probs = LOGITS_V.softmax(-1)[sorted(support)]
    torch.testing.assert_close(found[sorted(support)], probs / probs.sum(), rtol=0, atol=1e-3)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    probs = LOGITS_V.softmax(-1)
    order = LOGITS_V.argsort(descending=True, stable=True).tolist()
    for size in range(1, 8):
        reached = float(probs[order[:size]].sum())
        found = frequencies(shaping_of(20_000, top_p=min(reached - 1e-3, 1.0)))
        assert set(found.nonzero()[:, 0].tolist()) == set(order[:size])


def test_top_p_counts_within_what_top_k_leaves():
    kept = LOGITS_V.softmax(-1)[[1, 3, 6]]
    share = float(kept[0] / kept.sum())
    found = frequencies(shaping_of(20_000, top_k=3, top_p=share - 1e-3))
    assert found[1] == 1


def test_banned_tokens_never_come_and_the_rest_keep_their_proportions():
    num_rows = 20_000
    rows = list(range(num_rows)) * 2
    found = frequencies(banned=(rows, [1] * num_rows + [4] * num_rows))
    probs = LOGITS_V.softmax(-1)
    probs[[1, 4]] = 0
    torch.testing.assert_close(found, probs / probs.sum(), rtol=0, atol=1e-3)


def test_banning_all_likely_tokens_leaves_the_others_reachable():
    logits_V = torch.tensor([500.0, 0.0, 0.0])
    found = frequencies(banned=(list(range(100)), [0] * 100), num_rows=100, logits_V=logits_V)
    assert found.tolist() == [0.0, 0.5, 0.5]


def test_rounding_never_reaches_beyond_the_last_possible_token():
    logits_BV = torch.tensor([[0.0, 1.0, -math.inf, -math.inf]] * 3)
    u = torch.tensor([1.0, 1 - 2.0**-53, 0.0], dtype=torch.float64)
    assert sample(logits_BV, u)[0].tolist() == [1, 1, 0]


def test_a_plain_row_draws_the_same_beside_shaped_rows():
    logits_BV = torch.randn(200, 320, generator=torch.Generator().manual_seed(1)) * 3
    u = spread(200)
    shaping = Shaping(
        torch.tensor([1.0, 0.3] * 100),
        torch.tensor([320, 5] * 100),
        torch.tensor([1.0, 0.5] * 100),
        cuts=True,
    )
    plain_ids, plain_logprobs = sample(logits_BV, u)
    mixed_ids, mixed_logprobs = sample(logits_BV, u, shaping, ([1, 3], [0, 2]))
    assert torch.equal(plain_ids[::2], mixed_ids[::2])
    assert torch.equal(plain_logprobs[::2], mixed_logprobs[::2])
