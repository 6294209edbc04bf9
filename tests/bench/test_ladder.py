"""bench/ladder.py at the size of a test: runs that are stopped go on, results are joined, state travels."""

import argparse
import json
import random
import shutil
import tarfile

import pytest

import ladder as bench
from controls import ladder_run
from controls.finished import Finished
from controls.ladder_results import Joined, joined, thinned, without_problems, write_joined
from controls.ladder_state import pack, unpack
from controls.ladder_table import write_ladder
from controls.side_by_side import CLOSING_S, LEAST_S
from nalar.config import UserError
from nalar.recipes.ladder import zero_linear_cpu
from nalar.run import Metric


def tiny():
    full = zero_linear_cpu()
    return full.model_copy(
        update={
            "model": full.model.model_copy(update={"hidden_size": 16, "num_hidden_layers": 2}),
            "pretrain": full.pretrain.model_copy(update={"slice_tokens": 4_000, "max_slices": 1}),
            "packing": full.packing.model_copy(update={"step_tokens": 400}),
            "rl": full.rl.model_copy(
                update={
                    "steps": 3,
                    "prompts_per_step": 2,
                    "group_size": 4,
                    "max_tokens": 12,
                    "save_every_steps": 1,
                }
            ),
            "evals": full.evals.model_copy(update={"problems": 6, "k": 2, "max_tokens": 12}),
        }
    )


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setitem(ladder_run.RECIPES, "tiny", tiny)
    return "tiny"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with all its controls, and the folder that it lies in."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ladder_run.RECIPES, "tiny", tiny)
        ladder_run.go_on("tiny", 0, work / "tiny-seed0", 3600.0, 1)
    return work


def test_a_run_and_its_controls_in_one_small_file(whole, tmp_path):
    found = joined(Joined(), [("tiny-seed0", whole / "tiny-seed0")])
    one = found.runs["tiny-seed0"]
    assert found.is_whole("tiny-seed0") and one.stage == "whole"
    assert one.before["linear"]["n"] == one.after["linear"]["n"] == 6
    assert set(one.baselines) >= {"constant", "guess", "blind_search"}
    assert one.controls["rejection_sampling_sft"]["tasks"]["linear"]["n"] == 6
    assert one.controls["more_pretraining"]["flops_of_rl"] > 0
    assert one.controls["search"] is None  # nothing is searched
    assert [step for step, _ in one.curves["rl"]["reward"]] == [1, 2, 3]
    assert {row["stage"] for row in one.samples} == {"evaluate_base", "evaluate_final"}
    write_joined(tmp_path, found)
    assert "by_problem" not in (tmp_path / "results.json").read_text()
    assert Joined.read(tmp_path) == found


def test_a_table_of_it(whole, tmp_path):
    found = joined(Joined(), [("tiny-seed0", whole / "tiny-seed0")])
    found.runs["other-seed1"] = found.runs["tiny-seed0"].model_copy(
        update={"recipe": "other", "stage": "refused", "refusal": "no isolation", "after": {}}
    )
    write_joined(tmp_path, found)
    doc = tmp_path / "ladder.md"
    doc.write_text("# The ladder\n\nWords that stay.\n")
    write_ladder([tmp_path / "results.json"], doc)
    text = doc.read_text()
    assert "Words that stay." in text and "other-seed1: no isolation" in text
    row = next(line for line in text.splitlines() if line.startswith("| linear (zero-linear"))
    share = found.runs["tiny-seed0"].after["linear"]["pass_at_1"]["mean"]
    assert f"{100 * share:.1f}" in row


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_elsewhere(recipe, whole, tmp_path):
    here, there, out = tmp_path / "here", tmp_path / "there", tmp_path / "out"
    here.mkdir()
    there.mkdir()
    ladder_run.go_on(recipe, 0, here / "tiny-seed0", 0.0, 1)  # stops at once
    stopped = joined(Joined(), [("tiny-seed0", here / "tiny-seed0")])
    assert not stopped.is_whole("tiny-seed0") and not stopped.runs["tiny-seed0"].after
    out.mkdir()
    assert pack([here / "tiny-seed0"], out, part_bytes=2**20, parts=2) == []
    unpack(out, there)
    ladder_run.go_on(recipe, 0, there / "tiny-seed0", 3600.0, 1)
    ended = joined(stopped, [("tiny-seed0", there / "tiny-seed0")])
    at_once = joined(Joined(), [("tiny-seed0", whole / "tiny-seed0")])
    assert ended.runs["tiny-seed0"].after == at_once.runs["tiny-seed0"].after


def test_controls_are_not_begun_where_there_is_no_time(recipe, whole, tmp_path):
    shutil.copytree(whole / "tiny-seed0", tmp_path / "run", symlinks=True)
    for name in ("controls.json", ladder_run.DONE):
        (tmp_path / "run" / name).unlink()
    ladder_run._controls(Finished.open(tmp_path / "run"), until=0.0)
    assert not (tmp_path / "run" / "controls.json").exists()
    assert not (tmp_path / "run" / ladder_run.DONE).exists()


def test_only_the_newest_checkpoint_of_a_stage_travels(whole, tmp_path):
    pack([whole / "tiny-seed0"], tmp_path, part_bytes=2**24, parts=1)
    unpack(tmp_path, tmp_path)
    kept = {path.name for path in (tmp_path / "tiny-seed0" / "checkpoints").iterdir()}
    assert kept == {"pretrain-000010", "rl-000003"}
    assert (tmp_path / "tiny-seed0" / "model").resolve().name == "rl-000003"


def test_state_keeps_to_its_parts_and_says_what_it_left_out(tmp_path):
    for i in range(4):
        run = tmp_path / f"run-seed{i}"
        run.mkdir()
        (run / "metrics.jsonl").write_bytes(random.Random(i).randbytes(90_000 + 1_000 * i))
    dropped = pack(sorted(tmp_path.glob("run-*")), tmp_path, part_bytes=220_000, parts=1)
    (part,) = tmp_path.glob("state-*.tar")
    assert part.stat().st_size <= 220_000
    with tarfile.open(part) as tar:
        assert tar.getnames() == ["run-seed3.tgz", "run-seed2.tgz"]  # came farthest
    assert dropped == ["run-seed1", "run-seed0"]


def test_what_cannot_run_here_is_told_and_not_tried_again(recipe, tmp_path, monkeypatch):
    def refuse(*_):
        raise UserError(at="sandbox", got="nothing", want="isolation")

    monkeypatch.setattr(ladder_run, "run_zero", refuse)
    assert ladder_run.main([recipe, "0", str(tmp_path / "tiny-seed0"), "60", "1"]) == 2
    found = joined(Joined(), [("tiny-seed0", tmp_path / "tiny-seed0")])
    assert found.is_whole("tiny-seed0")
    assert "isolation" in found.runs["tiny-seed0"].refusal


def test_curves_are_thinned_and_keep_their_end():
    metrics = [Metric("rl", step, {"reward": step / 7, "mfu_frac": 1.0}) for step in range(1, 1000)]
    curves = thinned(metrics)
    assert set(curves) == {"reward"}
    assert len(curves["reward"]) <= 61 and curves["reward"][-1] == [999, 142.714]


def test_lists_of_single_problems_are_left_out():
    assert without_problems({"a": [{"by_problem": [1], "n": 2}]}) == {"a": [{"n": 2}]}


@pytest.mark.slow
def test_two_calls_side_by_side(tmp_path, capsys):
    """Real processes: the first call has time for two starts, the second for one run of the demo's tiny recipe."""
    first = _asked(tmp_path, seeds=[0, 1], minutes=(CLOSING_S + LEAST_S + 5) / 60, before=None)
    assert bench.run_all(first) == 0
    again = _asked(tmp_path, seeds=[1], minutes=9, before=tmp_path / "out0")
    assert bench.run_all(again) == 0
    assert "1 of 1 runs whole" in capsys.readouterr().out
    results = json.loads((tmp_path / "out9" / "results.json").read_text())
    assert results["runs"]["zero-tiny-seed1"]["stage"] == "whole"


def _asked(tmp_path, *, seeds, minutes, before):
    return argparse.Namespace(
        recipes=["zero-tiny"],
        seeds=seeds,
        workers=2,
        minutes=minutes,
        work=tmp_path / f"work{int(before is not None)}",
        out=tmp_path / ("out9" if before else "out0"),
        before=before,
        part_mib=15,
        parts=6,
    )
