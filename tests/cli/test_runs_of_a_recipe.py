"""demo, pretrain, rl and runs over a pipeline that takes no time."""

import json
from pathlib import Path

import pytest

from nalar.cli import drive
from nalar.pipeline.preflight import Machine
from nalar.run import Run


def test_demo_runs_the_recipe_and_says_how_to_go_on(pipeline, nalar_, tmp_path):
    called = nalar_("demo", "--seed", "3", "--rl.lr", "0.25")
    assert called.code == 0, called.err
    (call,) = pipeline.calls
    assert (call.config.recipe, call.config.seed, call.config.rl.lr) == ("zero-cpu", 3, 0.25)
    assert (call.until, call.force) == ("report", False)
    for text in (
        "50.0%",
        "40.0–60.0",
        "runs/zero-cpu-1/report.html",
        "nalar chat runs/zero-cpu-1",
    ):
        assert text in called.out
    assert "\x1b" not in called.out + called.err
    info = Run.open(tmp_path / "runs" / "zero-cpu-1").info
    assert info.command == "nalar demo --seed 3 --rl.lr 0.25"
    assert info.config["rl"]["lr"] == 0.25


def test_each_run_gets_the_next_free_name(pipeline, nalar_, tmp_path):
    for _ in range(2):
        assert nalar_("demo", "zero-tiny").code == 0
    (tmp_path / "runs" / "zero-tiny-10").mkdir()
    assert nalar_("demo", "--json", "zero-tiny").document["run"] == "runs/zero-tiny-11"


def test_json_of_a_run_is_one_document_and_its_log_goes_to_stderr(pipeline, nalar_):
    called = nalar_("demo", "--json")
    assert called.document["outcome"] == "finished"
    assert called.document["report"]["results"]["after"]["countdown"]["n"] == 4
    assert "pretrain 2/2 · loss 1.500 · tok/s 30,000 · $0.002" in called.err


def test_a_dry_run_writes_nothing(pipeline, nalar_, tmp_path):
    called = nalar_("demo", "--dry-run", "--json")
    assert called.code == 0
    assert called.document["forecast"]["total_params"] > 0
    assert called.document["config"]["rl"]["steps"] > 0
    assert pipeline.calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_what_it_takes_before_every_setting(pipeline, nalar_):
    said = nalar_("demo", "--rl.steps", "7", "--dry-run").out.splitlines()
    (end,) = (i for i, line in enumerate(said) if line.startswith("would write "))
    assert said[0].startswith("recipe        zero-cpu, seed 0") and "parameters" in said[1]
    assert end < 30
    settings = [line.partition(" ") for line in said[end + 2 :]]
    values = {name: json.loads(value) for name, _, value in settings}
    assert values == nalar_("demo", "--rl.steps", "7", "--dry-run", "--json").document["config"]


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_run_that_is_broken_off_says_whether_there_is_anything_to_go_on_from(
    is_saved, pipeline, nalar_, tmp_path
):
    def break_off(should_stop):
        if is_saved:
            (tmp_path / "runs" / "a" / "model").mkdir()
        raise KeyboardInterrupt

    pipeline.inside = break_off
    called = nalar_("demo", "--run", "a")
    assert called.code == 130
    said = "the last checkpoint is kept" if is_saved else "nothing was saved yet"
    assert f"stopped at once; {said}. To go on:\n  nalar demo --run runs/a --resume" in called.out


@pytest.mark.parametrize(
    ("machine", "at"),
    [
        (Machine(1, 10**11, 10**12), "threads"),
        (Machine(8, 10**6, 10**12), "memory"),
        (Machine(8, 10**11, 10**6), "disk"),
    ],
)
def test_a_machine_that_is_too_small_is_refused_before_anything_is_written(
    machine, at, pipeline, nalar_, tmp_path, monkeypatch
):
    monkeypatch.setattr(drive, "this_machine", lambda root: machine)
    called = nalar_("demo", "--threads", "2", "--json")
    assert (called.code, called.document["error"]["at"]) == (2, at)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_exists_is_not_run_over(pipeline, nalar_):
    assert nalar_("demo", "--run", "a").code == 0
    called = nalar_("demo", "--run", "a", "--json")
    assert called.code == 2
    assert "--run runs/a --resume" in called.document["error"]["hint"]
    assert len(pipeline.calls) == 1


def test_files_that_are_no_run_are_left_alone(pipeline, nalar_, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    assert nalar_("demo", "--run", "mine").code == 2
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(
    dry, pipeline, nalar_, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    called = nalar_("pretrain", "--device", "cuda", "--json", *dry)
    assert (called.code, called.document["error"]["at"]) == (2, "device")
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_the_device_that_auto_found(pipeline, nalar_, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert nalar_("demo", "--run", "a", "--device", "auto", "--dtype", "bfloat16").code == 0
    stored = Run.open(Path("runs/a")).info.config
    assert (stored["device"], stored["dtype"]) == ("cpu", "bfloat16")


def test_resume_goes_on_with_the_stored_config(pipeline, nalar_):
    assert nalar_("demo", "--run", "a", "--seed", "5", "--rl.steps", "7").code == 0
    assert nalar_("demo", "--run", "a", "--resume", "--seed", "5").code == 0
    first, second = pipeline.calls
    assert second.config == first.config
    assert second.config.rl.steps == 7


def test_a_run_that_goes_on_elsewhere_says_that_bits_may_differ(pipeline, nalar_):
    assert nalar_("demo", "--run", "a").code == 0
    assert "to the bit" not in nalar_("demo", "--run", "a", "--resume").out
    run = Run.open(Path("runs/a"))
    document = run.info.model_dump()
    document["environment"]["packages"]["torch"] = "0.4"
    run.write_json("run.json", document)
    assert "this run began with torch 0.4 (now " in nalar_("demo", "--run", "a", "--resume").out


def test_resume_refuses_flags_that_change_the_config_by_name(pipeline, nalar_):
    assert nalar_("demo", "--run", "a").code == 0
    called = nalar_("demo", "--run", "a", "--resume", "--seed", "9", "--rl.steps", "8", "--json")
    assert called.code == 2
    error = called.document["error"]
    assert error["at"] == "runs/a: seed"
    assert error["got"] == "9 (others differ too: rl.steps)"
    assert error["want"] == "0, which the run was started with"
    assert len(pipeline.calls) == 1


def test_a_probe_that_fails_exits_with_1_and_says_how_to_force(pipeline, nalar_):
    pipeline.outcome = pipeline.Outcome.PROBE_FAILED
    called = nalar_("demo", "--run", "a", "--json")
    assert called.code == 1
    assert called.document["outcome"] == "probe_failed"
    assert called.document["resume"] == "nalar demo --run runs/a --resume --force"
    pipeline.outcome = pipeline.Outcome.FINISHED
    assert nalar_("demo", "--run", "a", "--resume", "--force").code == 0
    assert pipeline.calls[-1].force


def test_a_source_that_is_not_there_is_refused_before_anything_is_written(
    pipeline, nalar_, tmp_path
):
    for words in (["--data.sources", "nope"], ["--tokenizer.path", "nope"], []):
        recipe = "zero-tiny" if words else "base-cpu"
        for dry in ([], ["--dry-run"]):
            called = nalar_("pretrain", recipe, *words, *dry, "--json")
            assert called.code == 2, words
            assert called.document["error"]["got"] in (
                "no such file",
                "no tokenizer.json",
                "no source",
            )
    assert list(tmp_path.iterdir()) == []


def test_sources_on_the_command_line_are_the_runs_own(pipeline, nalar_, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}')
    words = ["--data.sources", "a.jsonl,field=body,weight=3", "procedural"]
    assert nalar_("pretrain", "zero-tiny", "--run", "a", *words).code == 0
    sources = pipeline.calls[0].config.data.sources
    assert [source.kind for source in sources] == ["files", "procedural"]
    assert (sources[0].field, sources[0].weight) == ("body", 3.0)
    (tmp_path / "a.jsonl").unlink()
    assert nalar_("pretrain", "--run", "a", "--resume").code == 0
    assert pipeline.calls[1].config == pipeline.calls[0].config
    called = nalar_("pretrain", "--run", "a", "--resume", "--data.sources", "b.txt", "--json")
    error = called.document["error"]
    assert "data.sources" in error["at"] and "b.txt" in error["got"]


def test_pretrain_stops_before_rl_and_rl_goes_on(pipeline, nalar_, tmp_path):
    called = nalar_("pretrain", "zero-tiny", "--run", "base")
    assert called.code == 0
    assert "nalar rl runs/base" in called.out
    assert pipeline.calls[0].until == "pretrain"
    checkpoint = tmp_path / "runs" / "base" / "checkpoints" / "step-1"
    checkpoint.mkdir(parents=True)
    Run.open(tmp_path / "runs" / "base").point_model_to(checkpoint)
    assert nalar_("rl", "base").code == 0
    assert pipeline.calls[1].until == "report"
    assert pipeline.calls[1].config == pipeline.calls[0].config


def test_rl_wants_a_pretrained_base(pipeline, nalar_, tmp_path):
    Run.create(tmp_path / "runs", "raw", nalar_("plan", "--json").document["config"], "nalar", 0)
    called = nalar_("rl", "raw", "--json")
    assert called.code == 2
    assert "nalar pretrain --run runs/raw --resume" in called.document["error"]["hint"]


def test_a_stored_config_that_cannot_be_read_is_named(pipeline, nalar_, tmp_path):
    config = nalar_("plan", "--json").document["config"] | {"flavour": "sour"}
    Run.create(tmp_path / "runs", "old", config, "nalar", 0)
    called = nalar_("demo", "--run", "old", "--resume", "--json")
    assert called.code == 2
    assert "flavour" in called.document["error"]["at"]


def test_runs_lists_and_shows_and_names_what_it_cannot_read(pipeline, nalar_, tmp_path):
    nalar_("demo", "--run", "a")
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "run.json").write_text("{")
    document = nalar_("runs", "list", "--json").document
    assert [run["name"] for run in document["runs"]] == ["a"]
    assert document["runs"][0]["stages"][0]["tokens"] == 10
    assert len(document["unreadable"]) == 1
    shown = nalar_("runs", "show", "a", "--json").document
    assert shown["report"]["schema_version"] == shown["schema_version"] == 1
    assert shown["config"]["recipe"] == "zero-cpu"
    assert "a" in nalar_("runs").out
    hint = nalar_("runs", "show", "zero-cpu-", "--json").document["error"]["hint"]
    assert hint == "`nalar runs list` shows the runs there are"


def test_a_misspelt_run_names_the_nearest(pipeline, nalar_):
    nalar_("demo", "--run", "first-try")
    error = json.loads(nalar_("runs", "show", "fist-try", "--json").out)["error"]
    assert error["hint"] == "did you mean runs/first-try?"
