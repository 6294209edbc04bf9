import math

import pytest

from nalar.evals.side_by_side import compare
from nalar.run import Run


@pytest.fixture
def pair(synthetic, tmp_path):
    """A finished run, and one with another rate and size that came as far as RL."""
    first = synthetic.make_run(tmp_path, "first")
    config = synthetic.CONFIG | {
        "model": synthetic.CONFIG["model"] | {"hidden_size": 96},
        "lr": [1e-3, 2e-3],
    }
    second = Run.create(tmp_path, "second", config, "nalar demo", 0)
    for step in range(1, 101):
        loss = math.nan if step == 95 else 10.0 if step <= 90 else float(step)
        second.log_metrics("pretrain", step, {"loss": loss, "tokens": step, "skipped": 0.0})
    return [first, second]


def test_only_settings_that_differ_are_listed_and_what_is_lacking_is_none(pair):
    rows = {row.name: row.values for row in compare(pair).settings}
    assert rows == {"model.hidden_size": [64, 96], "lr": [None, [1e-3, 2e-3]]}
    assert compare([pair[0], pair[0]]).settings == []


def test_final_metrics_are_the_mean_of_the_last_tenth_without_gaps(pair):
    rows = {(row.stage, row.name): row.values for row in compare(pair).metrics}
    first, second = rows["pretrain", "loss"]
    assert second == pytest.approx((91 + 92 + 93 + 94 + 96 + 97 + 98 + 99 + 100) / 9)
    assert first == pytest.approx(0.69, abs=0.01)
    assert rows["pretrain", "skipped"] == [None, 0.0]
    assert rows["rl", "reward"][1] is None
    assert ("pretrain", "tokens") not in rows


def test_results_and_receipts_stand_in_the_order_of_the_runs(pair, synthetic):
    found = compare(pair[::-1])
    assert [run.name for run in found.runs] == ["second", "first"]
    assert found.results["after"]["countdown"] == [None, synthetic.AFTER["countdown"]]
    nothing, receipt = found.receipts["rl"]
    assert nothing is None and receipt.tokens == synthetic.STAGES["rl"][0]


def test_runs_of_one_name_go_by_their_paths(synthetic, tmp_path):
    runs = [synthetic.make_run(tmp_path / place, "demo") for place in ("a", "b")]
    assert [run.name for run in compare(runs).runs] == [str(run.path) for run in runs]


def test_numbers_too_large_to_add_up_are_left_out(synthetic, tmp_path):
    run = Run.create(tmp_path, "large", synthetic.CONFIG, "nalar demo", 0)
    for step in range(1, 31):
        run.log_metrics("pretrain", step, {"loss": 1e308})
    assert compare([run, run]).metrics == []
