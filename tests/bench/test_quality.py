import json

import pytest

from nalar.plan.model import count_parameters
from quality import (
    ARMS,
    BASELINE,
    STEP_TOKENS,
    TOKENS,
    Data,
    best_rate,
    path_of,
    tokens_at_equal_time,
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


def test_the_slower_arm_gets_as_many_tokens_as_the_quicker_ones_time_allows(tmp_path):
    for seed in range(3):
        write(tmp_path, BASELINE, seed, TOKENS, 1.0, cpu_s=10.0)
        write(tmp_path, "mtp", seed, TOKENS, 1.0, cpu_s=16.0)
    rates = {BASELINE: 0.007, "mtp": 0.007}
    tokens = tokens_at_equal_time(tmp_path, rates, "mtp")
    assert tokens[BASELINE] == TOKENS
    assert tokens["mtp"] % STEP_TOKENS == 0
    assert tokens["mtp"] == pytest.approx(TOKENS / 1.6, abs=STEP_TOKENS / 2)


def test_arms_are_compared_seed_by_seed(tmp_path):
    for name, losses, cpu_s in ((BASELINE, (1.0, 1.2, 1.4), 10.0), ("adamw", (1.5, 1.5, 1.5), 8.0)):
        write(tmp_path, name, 0, TOKENS // 2, 2.0)
        for seed, loss in enumerate(losses):
            write(tmp_path, name, seed, TOKENS, loss, cpu_s=cpu_s)
    sooner = round(0.8 * TOKENS / STEP_TOKENS) * STEP_TOKENS
    for seed in range(3):
        write(tmp_path, BASELINE, seed, sooner, 1.4)
    one = compare(Runs(tmp_path), "adamw")
    assert one.at_equal_tokens.values == pytest.approx((0.5, 0.3, 0.1))
    assert one.at_equal_time.values == pytest.approx((0.1, 0.1, 0.1))
    assert one.time_ratio == pytest.approx(0.8)
    assert "| 0.3000 (0.1000 to 0.5000) | 0.80 | 0.1000" in tables(Runs(tmp_path), [one])


def test_a_mean_needs_every_seed(tmp_path):
    for seed in (0, 2):
        write(tmp_path, BASELINE, seed, TOKENS, 1.0)
    write(tmp_path, BASELINE, 0, TOKENS // 2, 1.0)
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
