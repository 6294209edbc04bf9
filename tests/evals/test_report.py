"""The report is built from the folder alone, and keeps the contract for programs."""

import json
import subprocess
import sys

import pytest

from nalar.config import UserError
from nalar.evals.report import Report, build_report
from nalar.run import Run


def no_constant(text):
    raise AssertionError(f"{text} is not JSON")


def test_report_json_holds_what_programs_were_promised(report):
    document = json.loads(report.model_dump_json(), parse_constant=no_constant)
    assert document["schema_version"] == 1
    for stage in document["stages"]:
        assert {"name", "tokens", "flops", "wall_s", "usd", "energy_wh"} <= stage.keys()
    for when in ("before", "after"):
        for task in ("countdown", "chain_sum"):
            result = document["results"][when][task]
            assert {"n", "k", "truncated_frac", "well_formed_frac"} <= result.keys()
            assert {"mean_response_tokens", "self_check_frac"} <= result.keys()
            for measure in ("pass_at_1", "pass_at_k", "maj_at_k"):
                lo, hi = result[measure]["ci95"]
                assert 0 <= lo <= result[measure]["mean"] <= hi <= 1
    assert document["model"] == {"total_params": 297504, "active_params": 186912}
    for key in ("baselines", "probe", "hardware", "commit", "seed", "command"):
        assert key in document


def test_a_report_reads_back_as_it_was(report):
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_the_schema_covers_the_report(report):
    known = Report.model_json_schema()["properties"].keys()
    assert known == report.model_dump().keys()


def test_a_report_is_built_again_from_a_copy_of_the_folder(finished_run, report):
    assert build_report(Run.open(finished_run.path)) == report


def test_stages_resumed_are_one_line_and_the_total_is_their_sum(synthetic, tmp_path):
    run = synthetic.make_run(tmp_path)
    run.record(run.ledger()[0])
    found = build_report(run)
    assert [stage.name for stage in found.stages] == list(synthetic.STAGES)
    assert found.stages[0].tokens == 2 * synthetic.STAGES["pretrain"][0]
    assert found.total.tokens == sum(stage.tokens for stage in found.stages)
    assert found.total.energy_wh is None


def test_the_difference_is_paired_over_the_problems_of_the_samples(report):
    before = report.difference["countdown"]
    assert before.ci95[0] <= before.mean <= before.ci95[1]
    assert report.tries["after"] > report.tries["before"]


def test_samples_are_the_first_problems_whatever_their_outcome(finished_run, report):
    rows = finished_run.samples("evaluate_base")
    prompts = list(dict.fromkeys(r["prompt"] for r in rows if r["task"] == "countdown"))
    shown = [pair.prompt for pair in report.samples if pair.task == "countdown"]
    assert shown == prompts[: len(shown)]
    assert len(shown) == 4


def test_a_value_that_was_not_finite_is_a_gap(report):
    assert report.curves.accuracy["countdown"].y[6] is None


def test_a_long_curve_is_thinned_to_its_means(synthetic, tmp_path):
    run = Run.create(tmp_path, "long", {}, "nalar", 0)
    for step in range(1, 1001):
        run.log_metrics("pretrain", step, {"tokens": step, "loss": float(step)})
    loss = build_report(run).curves.loss
    assert len(loss.x) == 334
    assert (loss.x[0], loss.y[0]) == (3.0, 2.0)


def test_a_run_that_has_only_begun_has_a_report(tmp_path):
    run = Run.create(tmp_path, "young", {}, "nalar demo", 0)
    report = build_report(run)
    assert not report.is_complete
    assert report.total is None
    assert report.model is None


def test_a_broken_file_is_named(synthetic, tmp_path):
    run = synthetic.make_run(tmp_path)
    (run.path / "probe.json").write_text('[{"slice": "one"}]')
    with pytest.raises(UserError, match=r"probe\.json"):
        build_report(run)


def test_reports_are_built_without_torch():
    code = (
        "import sys; import nalar.evals.report_html, nalar.evals.table;"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
