import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from nalar.config import UserError
from nalar.disk import BusyError, only_writer
from nalar.run import Beyond, Lost, Meter, Receipt, Run, run_folders

PART = Receipt(
    name="rl",
    tokens=10,
    flops=2e9,
    wall_s=1.5,
    usd=0.25,
    energy_wh=2.0,
    started_at="2026-01-02T03:04:05+00:00",
)


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path, "first", {"rl": {"lr": 1e-3}}, "nalar demo", seed=7)


def test_a_run_opens_as_it_was_made(run):
    assert Run.open(run.path) == run
    document = json.loads((run.path / "run.json").read_text())
    assert {
        "schema_version",
        "name",
        "command",
        "seed",
        "config",
        "environment",
        "created",
    } == document.keys()
    assert document["config"] == {"rl": {"lr": 1e-3}}


def test_keys_that_a_later_version_adds_are_ignored(run):
    document = run.read_json("run.json")
    document["environment"]["motherboard"] = "one"
    run.write_json("run.json", document | {"lineage": []})
    assert Run.open(run.path).info == run.info
    run.write_json("run.json", document | {"schema_version": 99})
    with pytest.raises(UserError, match="newer"):
        Run.open(run.path)


@pytest.mark.parametrize("content", [None, "", "[1]", '{"name": "x"}', '{"schema_ver'])
def test_a_folder_without_a_whole_run_json_is_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json"):
        Run.open(tmp_path)


def test_a_new_run_never_takes_a_place_that_is_taken(tmp_path, run):
    def create(name):
        return Run.create(tmp_path, name, {}, "nalar demo", 0)

    with pytest.raises(UserError, match="--resume") as caught:
        create("first")
    assert "--run" in str(caught.value)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    (tmp_path / "letter").write_text("")
    for name in ("photos", "letter"):
        with pytest.raises(UserError, match="--run"):
            create(name)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_run_that_was_killed_before_it_began_can_be_made_again(tmp_path):
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / ".run.json.123.tmp").write_text("{")
    assert Run.create(tmp_path, "late", {}, "nalar demo", 0).info.name == "late"


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", ".hidden", "a\nb", "/etc"])
def test_a_name_stays_inside_its_folder(tmp_path, run, name):
    for write in (
        lambda: Run.create(tmp_path, name, {}, "", 0),
        lambda: run.write_json(name, {}),
        lambda: run.write_samples(name, []),
        lambda: run.checkpoint_dir(name),
    ):
        with pytest.raises(UserError, match="wanted: letters"):
            write()


def test_resume_goes_on_with_the_same_job_only(tmp_path, run):
    again = Run.create(
        tmp_path, "first", {"rl": {"lr": 1e-3}}, "nalar demo --resume", 7, resume=True
    )
    assert again == run
    with pytest.raises(UserError, match=r"first: rl\.lr: got 0\.002\n  wanted: 0\.001, which"):
        Run.create(tmp_path, "first", {"rl": {"lr": 2e-3}}, "", 7, resume=True)
    with pytest.raises(UserError, match=r"first: seed: got 8 \(others differ too: rl\.lr\)"):
        Run.create(tmp_path, "first", {"rl": {"lr": 2e-3}}, "", 8, resume=True)
    with pytest.raises(UserError, match=r"first: sft: got \{\}\n  wanted: nothing"):
        Run.create(tmp_path, "first", {"rl": {"lr": 1e-3}, "sft": {}}, "", 7, resume=True)
    with pytest.raises(UserError, match="nalar runs list"):
        Run.create(tmp_path, "second", {}, "", 7, resume=True)


def test_metrics_read_back_by_stage_and_merge_by_step(run):
    run.log_metrics("rl", 1, {"reward": 0.5})
    run.log_metrics("sft", 1, {"loss": 3})
    run.log_metrics("rl", 1, {"length": 12})
    run.log_metrics("rl", 2, {"reward": float("nan")})
    first, second = run.metrics("rl")
    assert (first.step, first.values) == (1, {"reward": 0.5, "length": 12.0})
    assert math.isnan(second.values["reward"])
    assert run.metrics("eval") == []


def test_what_a_resume_does_again_counts_once(run):
    for step in (1, 2, 3, 4):
        run.log_metrics("rl", step, {"reward": step, "old": 1})
    for step in (2, 3):
        run.log_metrics("rl", step, {"reward": 10 * step})
    assert [(m.step, m.values["reward"]) for m in run.metrics("rl")] == [(1, 1), (2, 20), (3, 30)]
    assert "old" not in run.metrics("rl")[1].values


def test_logs_go_back_to_where_they_were(run):
    run.log_metrics("rl", 1, {"reward": 1})
    run.record(PART)
    then = run.log_bytes()
    before = (run.metrics("rl"), run.ledger())
    run.log_metrics("rl", 2, {"reward": float("nan")})
    run.record(replace(PART, name="sft"))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": 5}\n{"stage": "rl", "st')
    beyond = run.beyond(then)
    assert [(m.stage, m.step) for m in beyond.metrics] == [("rl", 2)]
    assert beyond.receipts == [replace(PART, name="sft")]
    run.cut_back(then)
    assert (run.metrics("rl"), run.ledger()) == before
    assert run.log_bytes() == then
    assert run.beyond(then) == Beyond([], [])
    run.cut_back({})
    assert run.ledger() == []


def test_what_a_kill_left_in_a_run_is_cleared_away(run):
    run.write_samples("rl", [{"text": "a"}])
    left = [".state.json.7.tmp", "samples/.rl.jsonl.7.tmp", "checkpoints/.step-1.tmp/weights"]
    for name in left:
        path = run.path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("half")
    run.mend()
    names = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    assert names == {"run.json", "samples/rl.jsonl"}


def test_time_that_a_kill_cost_is_used_before_the_first_lap():
    with Meter(PART, Lost(wall_s=100.0)) as meter:
        assert meter.total.wall_s == pytest.approx(PART.wall_s + 100, abs=0.1)
        assert meter.lap().wall_s == pytest.approx(100, abs=0.1)
        assert meter.lap().wall_s == pytest.approx(0, abs=0.1)


def test_a_second_process_that_creates_the_same_run_is_refused(tmp_path):
    (tmp_path / "r").mkdir()
    with only_writer(tmp_path / "r"), pytest.raises(BusyError):
        Run.create(tmp_path, "r", {}, "nalar demo", 0)
    assert Run.create(tmp_path, "r", {}, "nalar demo", 0).info.name == "r"


def test_receipts_of_a_resumed_stage_add_up(run):
    run.record(PART)
    run.record(replace(PART, name="sft"))
    run.record(replace(PART, tokens=5, started_at="2026-01-03T00:00:00+00:00"))
    total = run.stage_total("rl")
    assert total == Receipt("rl", 15, 4e9, 3.0, 0.5, 4.0, PART.started_at)
    assert [stage.name for stage in run.stage_totals()] == ["rl", "sft"]
    assert run.stage_total("eval") is None
    assert len(run.ledger()) == 3


def test_energy_known_in_part_is_not_known():
    assert (PART + replace(PART, energy_wh=None)).energy_wh is None
    assert (replace(PART, energy_wh=0.0) + PART).energy_wh == 2.0
    with pytest.raises(ValueError, match="two stages"):
        PART + replace(PART, name="sft")


def test_laps_make_up_the_session_and_the_total_holds_earlier_ones():
    with Meter(PART) as meter:
        time.sleep(0.01)
        one = meter.lap()
        time.sleep(0.01)
        two = meter.lap()
    total = meter.total
    time.sleep(0.01)
    assert meter.total == total  # a meter stops when its block ends
    assert one.wall_s >= 0.01 <= two.wall_s
    assert total.wall_s == pytest.approx(PART.wall_s + one.wall_s + two.wall_s, abs=0.005)
    assert total.started_at == PART.started_at
    assert meter.lap().wall_s == pytest.approx(0, abs=0.005)


def test_samples_are_replaced_whole(run):
    run.write_samples("rl", [{"text": "9-3=6 ✗\u2028x"}, {"text": "b"}])
    run.write_samples("rl", [{"text": "c"}])
    assert run.samples("rl") == [{"text": "c"}]
    assert run.samples("base") == []


def test_documents_read_back_and_missing_ones_are_named(run):
    run.write_json("report.json", {"score": float("nan"), "text": "✓"})
    assert run.read_json("report.json") == {"score": None, "text": "✓"}
    with pytest.raises(UserError, match=r"other\.json"):
        run.read_json("other.json")


def test_model_is_a_link_that_survives_moving_the_run(tmp_path, run):
    with pytest.raises(UserError, match="checkpoint"):
        run.model_dir()
    for name in ("step-1", "step-2"):
        run.checkpoint_dir(name).mkdir(parents=True)
        run.point_model_to(run.checkpoint_dir(name))
        assert run.model_dir().resolve() == run.checkpoint_dir(name).resolve()
    moved = run.path.rename(tmp_path / "moved")
    assert Run.open(moved).model_dir().resolve() == (moved / "checkpoints" / "step-2").resolve()
    with pytest.raises(ValueError, match="not a checkpoint inside"):
        run.point_model_to(tmp_path)


def test_the_runs_of_a_folder_are_found(tmp_path, run):
    (tmp_path / "other").mkdir()
    assert run_folders(tmp_path) == [run.path]
    assert run_folders(tmp_path / "none") == []


def test_a_killed_writer_loses_nothing_that_it_had_logged(tmp_path, run):
    program = """
import sys
from pathlib import Path
from nalar.run import Run
run = Run.open(Path(sys.argv[1]))
for step in range(10**9):
    run.log_metrics("rl", step, {"reward": step, "length": 1.0})
    print(step, flush=True)
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    last = [writer.stdout.readline() for _ in range(50)][-1]
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    steps = [metric.step for metric in run.metrics("rl")]
    assert steps == list(range(len(steps)))
    assert len(steps) > int(last)
    run.log_metrics("rl", len(steps), {"reward": 0.0})
    assert len(run.metrics("rl")) == len(steps) + 1
