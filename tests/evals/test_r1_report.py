"""What a pipeline's report says: receipts that add up, a provenance that its data bears out, text that cannot act."""

import json

import pytest

from nalar.evals.r1_html import render_r1, write_r1
from nalar.evals.r1_report import DataReport, added, build_r1, provenance
from nalar.evals.r1_results import ModelResult, win_rate, win_rates
from nalar.evals.r1_table import headline, summary
from nalar.evals.table import plain
from nalar.plan.r1_stages import ON_TOP, PUBLISHED, STAGES, stage_of_model
from nalar.run import Receipt, Run

RESULT = {
    "n": 4,
    "k": 2,
    "pass_at_1": {"mean": 0.5, "ci95": [0.4, 0.6]},
    "pass_at_k": {"mean": 0.9, "ci95": [0.8, 1.0]},
    "maj_at_k": {"mean": 0.7, "ci95": [0.6, 0.8]},
    "truncated_frac": 0.1,
    "well_formed_frac": 0.9,
    "mean_response_tokens": 80.0,
    "self_check_frac": None,
}
EVIL = "<script>alert(1)</script>\x1b[2J"


def receipt(name: str, tokens: int, usd: float, energy_wh: float | None = None) -> Receipt:
    return Receipt(name, tokens, 10.0 * tokens, 3600.0, usd, energy_wh, "2026-01-01T00:00:00+00:00")


def row(key: str, mode: str = "on", **more):
    said = {"thought": EVIL, "answer": "1", "correct": True, "finish_reason": "stop", "tokens": 3}
    return {"task": "linear", "key": key, "prompt": f"solve {key}", "mode": mode} | said | more


@pytest.fixture
def run(tmp_path) -> Run:
    """Two models, data from three places, and a stage under way."""
    config = {"recipe": "r1-test", "price": {"usd_per_hour": 0.5}}
    config |= {name: {} for name in ("pretrain", "zero", "rejection_sampling", "sft")}
    run = Run.create(tmp_path, "r", config, "nalar r1", 0)
    for name, used in (("pretrain", 100), ("zero", 20), ("rejection_sampling", 7)):
        own = Run.create(run.path / "stages", name, {"recipe": "x"}, "nalar r1", 0)
        own.record(receipt("a", used, 0.1))
        own.record(receipt("b", 1, 0.1))
        if name != "rejection_sampling":
            own.write_json("state.json", {"done": ["data", STAGES[name].ends_with]})
        else:
            own.write_json("state.json", {"done": ["data"]})
    origins = ["self", "self", "procedural", "file:mine.jsonl"]
    lines = [json.dumps({"messages": [], "origin": origin}) for origin in origins]
    (run.path / "stages" / "rejection_sampling" / "dataset.jsonl").write_text("\n".join(lines))
    run.record(receipt("measure_pretrain", 5, 0.1))
    run.record(receipt("measure_zero", 6, 0.1))
    for name in ("pretrain", "zero"):
        result = {"stage": name, "tasks": {"linear": RESULT}, "thought_tokens": {"linear": 60.0}}
        if name == "zero":
            result["modes"] = {"off": {"linear": RESULT}}
            result["quality"] = {"linear": RESULT["pass_at_1"]}
            result["win_rate"] = {"linear": RESULT["pass_at_1"]}
        run.write_json(f"measure_{name}.json", result)
        rows = [row("a"), row("a", answer="2"), row("b", answer=f"{name} said"), row("a", "off")]
        run.write_samples(f"measure_{name}", rows)
    return run


def test_receipts_add_up_by_stage_and_by_row_of_the_published_table(run):
    report = build_r1(run)
    assert {one.name: one.tokens for one in report.stages} == {
        "pretrain": 101,
        "zero": 21,
        "rejection_sampling": 8,
        "measure": 11,
    }
    assert report.on_top_of_base.tokens == 29  # without the base and the measuring
    assert (report.total.tokens, report.total.flops) == (141, 1410.0)
    assert report.total.usd == pytest.approx(0.8)
    assert report.total.energy_wh is None
    assert [one.is_done for one in report.stages] == [True, True, False, True]
    assert not report.is_complete


def test_energy_is_known_only_where_all_of_it_is():
    assert added([receipt("a", 1, 0.0, 2.0), receipt("b", 1, 0.0, 3.0)]).energy_wh == 5.0
    assert added([receipt("a", 1, 0.0, 2.0), receipt("b", 1, 0.0)]).energy_wh is None


def test_the_published_rows_add_up_to_what_is_published():
    assert sum(PUBLISHED[row].h800_hours for row in ON_TOP) == 147_000
    assert sum(PUBLISHED[row].usd for row in ON_TOP) == 294_000
    for row in ON_TOP:
        assert PUBLISHED[row].usd == 2 * PUBLISHED[row].h800_hours


@pytest.mark.parametrize(
    ("origins", "says", "not_said"),
    [
        ({"self": 3}, "3 were written by models of this run. No output of any other", "file"),
        ({"self": 3, "procedural": 1}, "and 1 by a program, without a model. No output", "judge"),
        ({"self": 3, "file:x.jsonl": 2}, "2 come from files (x.jsonl)", "No output"),
        ({"self": 1, "judge:m-1": 4}, "4 were rewritten by another model (m-1)", "No output"),
        ({"self": 1, "odd": 4}, "4 do not say where they come from", "No output"),
        ({}, "No dialogue has been collected", "written"),
    ],
)
def test_the_sentence_about_the_data_is_what_the_data_says(origins, says, not_said):
    data = {"sft": DataReport(dialogues=sum(origins.values()), origins=origins, collected={})}
    sentence = provenance(data)
    assert says in sentence and not_said not in sentence


def test_a_line_without_an_origin_is_not_passed_over(run):
    path = run.path / "stages" / "rejection_sampling" / "dataset.jsonl"
    path.write_text(path.read_text() + '\n{"messages": []}\n')
    assert "1 do not say where they come from" in build_r1(run).provenance


def test_samples_stand_side_by_side_by_problem_and_are_the_first_of_each(run):
    samples = build_r1(run).samples
    assert [one.prompt for one in samples] == ["solve a", "solve b"]
    assert [list(one.responses) for one in samples] == [["base", "zero"]] * 2
    assert samples[0].responses["zero"].answer == "1"
    assert samples[1].responses["base"].answer == "pretrain said"


def test_what_a_model_wrote_cannot_act_on_the_page_or_the_screen(run):
    report = build_r1(run)
    page = render_r1(report, folder="r")
    assert "<script" not in page and "\x1b" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in plain(summary(report))


def test_page_and_screen_have_every_part(run):
    report = write_r1(run)
    page, screen = (run.path / "report.html").read_text(), plain(summary(report), width=200)
    for text in ("50.0%", "40.0–60.0", "101,000", "294,000", "On top of the base", "no thought"):
        assert text in page and text in screen, text
    assert page.count("<svg") == 2
    assert "<style>" in page and "report.html.jinja" not in page
    assert "left: rejection_sampling, sft" in headline(report)


def test_a_broken_measurement_is_named(run):
    from nalar.config import UserError

    (run.path / "measure_zero.json").write_text('{"stage": "zero"}')
    with pytest.raises(UserError, match=r"measure_zero\.json"):
        build_r1(run)


def test_a_win_is_counted_over_all_pairs_and_a_draw_is_half_of_one():
    assert win_rates([[1.0, 0.0]], [[0.0, 0.5]]) == [(1 + 1 + 0.5 + 0) / 4]
    assert win_rates([[0.3]], [[0.3]]) == [0.5]
    found = win_rate({"a": [1.0], "b": [0.0], "c": [1.0]}, {"a": [0.0], "b": [1.0]}, seed=0)
    assert found.mean == 0.5
    assert win_rate({"a": [1.0]}, {"b": [1.0]}, seed=0) is None


def test_a_model_against_itself_wins_half_the_time():
    rated = {str(n): [n % 3 / 2, n % 5 / 4] for n in range(30)}
    assert win_rate(rated, rated, seed=0).mean == pytest.approx(0.5)


def test_models_and_stages_find_each_other():
    named = [stage.model for stage in STAGES.values() if stage.model]
    assert [stage_of_model(name) for name in named] == [n for n, s in STAGES.items() if s.model]
    assert ModelResult(stage="zero", tasks={}, thought_tokens={}).modes == {}
