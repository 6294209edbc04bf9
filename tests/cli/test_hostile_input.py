"""Flags, folders and files that nobody should give, and that somebody will."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nalar.cli import main as main_module
from nalar.disk import only_writer
from nalar.recipes.zero import zero_tiny
from nalar.run import Run, refuse_occupied

RECEIPT = {
    "name": "pretrain",
    "tokens": 1,
    "flops": 1.0,
    "wall_s": 1.0,
    "usd": 0.1,
    "energy_wh": None,
    "started_at": "2026-01-01T00:00:00+00:00",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    config = zero_tiny().model_dump(mode="json")
    return Run.create(Path("runs"), "r", config, "nalar demo", 0)


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("flags", "at"),
    [
        (["--threads", "0"], "threads"),
        (["--seed", "-1"], "seed"),
        (["--seed", "9" * 40], "seed"),
        (["--pretrain.max-slices", "9" * 400], "pretrain.max_slices"),
        (["--pretrain.optim.lr", "inf"], "pretrain.optim.lr"),
        (["--model.hidden-size", "0"], "model.hidden_size"),
        (["--model.rope-theta", "nan"], "model.rope_theta"),
        (["--corpus.mean-tries", "0"], "corpus.mean_tries"),
        (["--corpus.weights.facts", "-1"], "corpus.weights.facts"),
        (["--tokenizer.sample-documents", "0"], "tokenizer.sample_documents"),
        (["--evals.temperature", "nan"], "evals.temperature"),
        (["--recipe", ""], "recipe"),
    ],
)
def test_a_number_that_no_run_can_use_is_refused_by_its_name(flags, at, nalar_):
    called = nalar_("plan", *flags, "--json")
    assert (called.code, called.document["error"]["at"]) == (2, at)


@pytest.mark.parametrize("name", ["", "~nobody-of-this-name/x", "a" * 300])
def test_a_name_that_no_folder_can_have_is_bad_input(name, nalar_, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["runs", "show", name], ["demo", "zero-tiny", "--run", name, "--dry-run"]):
        called = nalar_(*words, "--json")
        assert (called.code, set(called.document)) == (2, {"schema_version", "error"})
        assert "Traceback" not in called.err


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run.json", '{"a":' * 100_000),
        ("ledger.jsonl", '{"name": 1}\n'),
        ("ledger.jsonl", json.dumps(RECEIPT | {"wall_s": 1e400}) + "\n"),
        ("metrics.jsonl", '{"stage": "rl"}\n'),
        ("metrics.jsonl", '{"stage": "rl", "step": "x", "values": {}}\n'),
        ("samples/evaluate_base.jsonl", '{"task": 1}\n'),
        ("probe.json", "{}"),
    ],
)
def test_a_broken_file_of_a_run_is_named_and_does_not_hide_other_runs(file, text, run, nalar_):
    path = run.path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    for words in (["runs", "show", "r"], ["report", "r"]):
        called = nalar_(*words)
        assert called.code == 2
        assert str(run.path) in called.err
        assert "Traceback" not in called.err
    assert nalar_("runs", "list").code == 0


@pytest.mark.parametrize("part", [{"model": {"hidden_size": 1}}, {"price": 5}])
def test_a_config_of_another_form_is_no_failure_of_our_own(part, run, nalar_):
    document = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(document | {"config": part}))
    called = nalar_("report", "r", "--json")
    assert called.code in (0, 2)
    assert "Traceback" not in called.err


def test_values_too_large_to_add_up_are_gaps_in_a_curve(run, nalar_):
    run.log_metrics("rl", 1, {"accuracy/a": 1e308})
    run.log_metrics("rl", 2, {"accuracy/a": 1e308})
    called = nalar_("report", "r", "--dry-run", "--json")
    assert called.code == 0
    assert called.document["curves"]["accuracy"]["a"]["y"] == [None, None]


def test_text_of_somebody_elses_run_steers_no_terminal(run, nalar_):
    escape, markup = "\x1b]0;owned\x07\x1b[2J", "[/red] [bold] :smile:"
    document = json.loads((run.path / "run.json").read_text())
    bad = {"command": escape + markup, "created": markup + escape}
    (run.path / "run.json").write_text(json.dumps(document | bad))
    (run.path / "ledger.jsonl").write_text(json.dumps(RECEIPT | {"name": escape + markup}) + "\n")
    for words in (["runs", "show", "r"], ["runs", "list"], ["report", "r"]):
        called = nalar_(*words)
        assert called.code == 0
        assert not set("\x1b\x07") & set(called.out + called.err)
    assert markup in nalar_("runs", "show", "r").out


def test_a_second_process_on_a_run_is_refused(pipeline, nalar_, monkeypatch):
    assert nalar_("demo", "zero-tiny", "--run", "r").code == 0
    with only_writer(Path("runs/r")):
        called = nalar_("demo", "--run", "r", "--resume", "--json")
    assert called.code == 2
    assert "another process" in called.document["error"]["got"]
    assert nalar_("demo", "--run", "r", "--resume").code == 0


def test_what_a_kill_left_of_a_first_run_json_does_not_occupy_the_name(tmp_path):
    (tmp_path / ".run.json.123.tmp").write_text("{")
    refuse_occupied(tmp_path)


@pytest.mark.few(2)
@pytest.mark.parametrize(("redirection", "code"), [(">&- 2>&-", 0), ("> /dev/full", 2), (">&-", 0)])
def test_an_output_that_is_closed_or_full_is_no_traceback(redirection, code, tmp_path):
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    source = str(Path(main_module.__file__).parents[2])
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m nalar plan kimi-k2 {redirection}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": source},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
