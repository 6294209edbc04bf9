import math

import pytest
import torch

from nalar.optim.spikes import SpikeGuard

CPU = torch.device("cpu")


def guard(*, sigma=6.0, window=16, skip=True) -> SpikeGuard:
    return SpikeGuard(sigma=sigma, window=window, skip=skip, device=CPU)


def feed(it, losses, norm=1.0):
    return [bool(it.judge(torch.tensor(float(x)), torch.tensor(norm))) for x in losses]


def noise(n, seed=0):
    return (2 + 0.1 * torch.randn(n, generator=torch.Generator().manual_seed(seed))).tolist()


def test_noise_is_no_spike():
    assert all(feed(guard(), noise(200)))


def test_nothing_is_a_spike_before_half_a_window():
    assert feed(guard(), [*noise(7), 1000.0]) == [True] * 8
    assert feed(guard(), [*noise(8), 1000.0]) == [True] * 8 + [False]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_never_counts(bad):
    it = guard(skip=False)
    assert feed(it, [1.0, bad]) == [True, False]
    assert not bool(it.judge(None, torch.tensor(bad)))
    assert bool(it.judge(torch.tensor(1.0), torch.tensor(1.0)))


def test_a_gradient_can_be_a_spike_as_well_and_a_missing_loss_is_none():
    it = guard()
    for x in noise(20):
        assert it.judge(None, torch.tensor(x))
    assert not it.judge(None, torch.tensor(100.0))
    assert it.judge(None, torch.tensor(2.0))


def skewed_norms(n, seed=0):
    """As measured in pretraining with batches of 1,536 tokens: logarithms with a deviation of 0.4."""
    return (0.4 * torch.randn(n, generator=torch.Generator().manual_seed(seed))).exp().tolist()


def test_the_long_tail_of_gradient_norms_is_no_spike_but_a_hundredfold_norm_is():
    norms, loss = skewed_norms(1500), torch.tensor(1.0)
    it, by_value = guard(window=128), guard(window=128)
    assert all(it.judge(loss, torch.tensor(x)) for x in norms)
    assert not all(feed(by_value, norms))  # as a loss, without the logarithm, some would be dropped
    assert not it.judge(loss, torch.tensor(100.0))


def test_norms_that_hardly_vary_are_judged_as_by_their_values():
    norms = [1.98, 2.02] * 8  # mean 2, deviation 0.02, of logarithms 0.01
    for norm, counts in (
        (2.11, True),
        (2.14, False),
    ):  # six deviations: 2.12 by value, 2.124 by logarithm
        it = guard(window=24)  # not yet full
        assert all(it.judge(None, torch.tensor(x)) for x in norms)
        assert bool(it.judge(None, torch.tensor(norm))) == counts


def test_a_gradient_of_zero_does_not_blunt_the_guard():
    it = guard(window=128)
    for x in [*skewed_norms(100), 0.0, 0.0]:
        assert it.judge(None, torch.tensor(x))
    assert not it.judge(None, torch.tensor(100.0))


def test_gradients_that_are_always_zero_are_no_spikes():
    it = guard()
    assert all(it.judge(None, torch.tensor(0.0)) for _ in range(40))


def test_a_low_value_is_no_spike():
    assert feed(guard(), [*noise(20), -1000.0])[-1]


def test_the_threshold_is_the_sigma_of_the_window():
    values = [1.0, 3.0] * 8  # mean 2, deviation 1
    assert feed(guard(sigma=3.0), [*values, 4.99])[-1]
    assert not feed(guard(sigma=3.0), [*values, 5.01])[-1]


def test_a_spike_that_was_dropped_does_not_blunt_the_guard():
    it = guard()
    feed(it, noise(20))
    assert feed(it, [50.0, 50.0, *noise(3), 50.0]) == [False, False, True, True, True, False]


def test_values_that_have_risen_to_stay_are_soon_accepted():
    it = guard(window=128)
    assert all(feed(it, noise(128)))
    counts = feed(it, [3.2] * 10)  # twelve deviations above
    assert not counts[0] and counts[-1]


def test_a_gradient_norm_that_has_risen_to_stay_is_soon_accepted():
    it = guard(window=128)
    for x in skewed_norms(128):
        it.judge(None, torch.tensor(x))
    counts = [bool(it.judge(None, torch.tensor(40.0))) for _ in range(10)]
    assert not counts[0] and counts[-1]


def test_the_window_takes_a_spike_as_its_limit_and_what_is_not_finite_not_at_all():
    values = [1.0, 3.0] * 8  # mean 2, deviation 1
    it = guard(sigma=3.0, window=20)
    feed(it, [*values, 1000.0, math.nan])
    assert it.losses_W.tolist() == [*values, 5.0, 0.0, 0.0, 0.0]
    assert (int(it.entered), int(it.counted), int(it.seen)) == (17, 16, 18)


def test_equal_values_are_no_reason_to_drop_the_next():
    assert feed(guard(), [*[2.0] * 20, 2.001])[-1]


def test_without_skipping_a_spike_counts_and_is_scored():
    it = guard(skip=False)
    assert all(feed(it, [*noise(20), 1000.0]))
    assert float(it.score) == pytest.approx(1 / 16)


def test_the_score_and_the_count_in_a_row():
    it = guard()
    feed(it, noise(20))
    assert float(it.score) == 0
    feed(it, [90.0, 90.0])
    assert int(it.dropped_in_a_row) == 2
    assert float(it.score) == pytest.approx(2 / 16)
    feed(it, noise(1))
    assert int(it.dropped_in_a_row) == 0


def test_its_state_is_all_of_it():
    one, two = guard(), guard()
    feed(one, [*noise(20), 80.0])
    for (_, mine), (_, theirs) in zip(two.state(), one.state(), strict=True):
        mine.copy_(theirs)
    later = [*noise(5, seed=3), 60.0, 2.0]
    assert feed(one, later) == feed(two, later)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one.state(), two.state(), strict=True))
