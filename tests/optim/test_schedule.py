import pytest

from nalar.optim.config import ScheduleConfig
from nalar.optim.schedule import lr_factor


def curve(config, total_steps):
    return [lr_factor(config, step, total_steps) for step in range(total_steps)]


def test_linear_decay_by_hand():
    config = ScheduleConfig(shape="wsd_linear", warmup_steps=2, stable_frac=0.6, final_lr_frac=0.1)
    want = [0.5, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1]
    assert curve(config, 10) == pytest.approx(want)


def test_cosine_decay_by_hand():
    config = ScheduleConfig(shape="cosine", warmup_steps=4, stable_frac=0.0, final_lr_frac=0.2)
    half_sqrt3 = 3**0.5 / 2
    want = [0.25, 0.5, 0.75, 1]  # then 0.2 + 0.8 (1 + cos(k pi / 6)) / 2
    want += [0.2 + 0.4 * (1 + c) for c in (half_sqrt3, 0.5, 0, -0.5, -half_sqrt3, -1)]
    assert curve(config, 10) == pytest.approx(want)


def test_constant_only_warms_up():
    config = ScheduleConfig(shape="constant", warmup_steps=2)
    assert curve(config, 5) == [0.5, 1, 1, 1, 1]


@pytest.mark.parametrize("shape", ["wsd_linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 3, 50])
@pytest.mark.parametrize("stable_frac", [0.0, 0.29, 1.0])
@pytest.mark.parametrize("total_steps", [1, 2, 20])
def test_the_factor_stays_in_reach_and_never_rises_after_the_warmup(
    shape, warmup_steps, stable_frac, total_steps
):
    config = ScheduleConfig(shape=shape, warmup_steps=warmup_steps, stable_frac=stable_frac)
    factors = curve(config, total_steps + 5)
    assert all(0 < factor <= 1 for factor in factors)
    after = factors[warmup_steps:]
    assert after == sorted(after, reverse=True)


def test_steps_past_the_end_keep_the_final_rate():
    config = ScheduleConfig(final_lr_frac=0.05)
    assert lr_factor(config, 99, 100) == pytest.approx(0.05)
    assert lr_factor(config, 1000, 100) == pytest.approx(0.05)
