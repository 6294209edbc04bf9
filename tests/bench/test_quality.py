import json

import pytest

from nalar.plan.model import count_parameters
from quality import (
    ARMS,
    BASELINE,
    HALF_TOKENS,
    STEP_TOKENS,
    TOKENS,
    Data,
    best_rate,
    path_of,
    train,
    wider,
)
from quality_report import Runs, Spread, compare, tables


def write(runs, name, seed, tokens, loss, *, lr=0.007, cpu_s=10.0):
    run = {
        "arm": name,
        "lr": lr,
        "seed": seed,
        "tokens": tokens,
        "loss": loss,
        "cpu_s": cpu_s,
        "step_cpu_s": 0.05,
        "skipped": [3],
        "train_losses": [1.0] * 100,
        "total_params": 7,
        "active_params": 5,
    }
    path_of(runs, name, lr, seed, tokens).write_text(json.dumps(run))


def test_a_sweep_widens_until_the_best_rate_lies_within():
    assert wider({0.1: 3.0, 0.2: 2.0, 0.4: 1.0}) == [0.8]
    assert wider({0.1: 1.0, 0.2: 2.0, 0.4: 3.0}) == [0.05]
    assert wider({0.1: 3.0, 0.2: 1.0, 0.4: float("nan")}) == []


def test_a_rate_that_diverged_is_never_the_best():
    assert best_rate({0.1: float("nan"), 0.2: 2.0}) == 0.2


def test_dense_and_experts_have_equal_active_parameters():
    dense, experts = (count_parameters(ARMS[name].model_config()) for name in ("dense", BASELINE))
    assert dense.active_params == pytest.approx(experts.active_params, rel=1e-3)


def two_arms(runs, name, losses, *, half, cpu_s):
    """Three seeds of the baseline and of another arm; the baseline takes 10 s and halves of it reach 2.0."""
    for seed, loss in enumerate(losses):
        write(runs, BASELINE, seed, HALF_TOKENS, 2.0)
        write(runs, BASELINE, seed, TOKENS, 1.0 + 0.2 * seed, cpu_s=10.0)
        write(runs, name, seed, HALF_TOKENS, half)
        write(runs, name, seed, TOKENS, loss, cpu_s=cpu_s)
    return Runs(runs)


def test_a_quicker_arm_meets_the_baseline_on_fewer_tokens(tmp_path):
    runs = two_arms(tmp_path, "adamw", (1.5, 1.5, 1.5), half=3.0, cpu_s=10.0 * 0.5**0.5)
    one = compare(runs, "adamw")
    assert one.at_equal_tokens.values == pytest.approx((0.5, 0.3, 0.1))
    # The root of a half is midway in the logarithm: 1.5, 1.6 and 1.7 of the baseline.
    assert one.at_equal_time.values == pytest.approx((0.0, -0.1, -0.2), abs=2e-3)
    assert one.tokens == TOKENS and one.base_tokens == 885 * STEP_TOKENS
    assert f"| {one.at_equal_tokens} | 0.71 | {one.at_equal_time}" in tables(runs, [one])


def test_a_slower_arm_gets_fewer_tokens_itself(tmp_path):
    one = compare(two_arms(tmp_path, "mtp", (1.0, 1.2, 1.4), half=2.0, cpu_s=20.0), "mtp")
    assert one.at_equal_tokens.values == pytest.approx((0.0, 0.0, 0.0))
    assert one.at_equal_time.values == pytest.approx((1.0, 0.8, 0.6))
    assert (one.tokens, one.base_tokens) == (TOKENS / 2, TOKENS)


def test_a_run_that_was_made_for_equal_time_goes_before_what_lies_between(tmp_path):
    runs = two_arms(tmp_path, "mtp", (1.0, 1.2, 1.4), half=2.0, cpu_s=12.5)
    made = compare(runs, "mtp").tokens
    assert made == 1000 * STEP_TOKENS
    for seed in range(3):
        write(tmp_path, "mtp", seed, made, 1.1)
    assert compare(Runs(tmp_path), "mtp").at_equal_time.values == pytest.approx((0.1, -0.1, -0.3))


def test_nothing_is_said_beyond_the_ends_of_runs(tmp_path):
    runs = two_arms(tmp_path, "mtp", (1.0, 1.2, 1.4), half=2.0, cpu_s=21.0)
    with pytest.raises(ValueError, match="do not lie between"):
        compare(runs, "mtp")


def test_a_mean_needs_every_seed(tmp_path):
    for seed in (0, 2):
        write(tmp_path, BASELINE, seed, TOKENS, 1.0)
    write(tmp_path, BASELINE, 0, HALF_TOKENS, 1.0)
    assert Runs(tmp_path).finished() == []
    assert str(Spread((1.0, 3.0))) == "2.0000 (1.0000 to 3.0000)"


@pytest.mark.slow
def test_arms_of_one_seed_train_in_turn_as_they_would_alone(tmp_path):
    """Two steps of each."""
    data, rates = Data(), {BASELINE: 0.007, "mtp": 0.007}
    tokens = 2 * STEP_TOKENS
    train(tmp_path / "turn", data, rates, 0, tokens)
    train(tmp_path / "alone", data, {"mtp": 0.007}, 0, tokens)
    together, alone = (
        json.loads(path_of(tmp_path / folder, "mtp", 0.007, 0, tokens).read_bytes())
        for folder in ("turn", "alone")
    )
    for key in ("loss", "curve", "train_losses", "grad_norms"):
        assert together[key] == alone[key]
    assert together["in_turn_with"] == [BASELINE, "mtp"]
    assert together["loss"] < together["train_losses"][0]
