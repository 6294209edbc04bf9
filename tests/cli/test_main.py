import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nalar.cli import main as main_module
from nalar.cli.main import VERBS, main


def shell(
    *args: str, cwd: Path, script: str | None = None, **kwargs: object
) -> subprocess.CompletedProcess[str]:
    start = ["-c", script] if script else ["-m", "nalar"]
    return subprocess.run(
        [sys.executable, *start, *args], cwd=cwd, capture_output=True, text=True, env=env()
    )


def env() -> dict[str, str]:
    source = str(Path(main_module.__file__).parents[2])
    return os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}


def test_help_and_plan_do_not_import_torch(tmp_path):
    script = (
        "import sys; from nalar.cli.main import main; main(['--help']); "
        "main(['plan', 'zero-tiny']); main(['demo', 'zero-tiny', '--dry-run']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = shell(cwd=tmp_path, script=script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_takes_json(verb, capsys):
    run = importlib.import_module(f"nalar.cli.{verb}").run
    with pytest.raises(SystemExit) as stop:
        run([*{"runs": ["show"], "keys": ["create"]}.get(verb, []), "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"\nnalar {verb}" in text, "an example on a line of its own"
    assert "--json" in text


@pytest.mark.parametrize("verb", ["demo", "pretrain", "rl", "report"])
def test_every_verb_that_writes_has_a_dry_run(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "--dry-run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["dmeo"], "nalar demo"),
        (["plan", "zero-cpuu"], "zero-cpu"),
        (["demo", "--recipe", "zero-tny"], "zero-tiny"),
        (["demo", "--rl.lrr", "1e-3"], "--rl.lr"),
        (["rl", "nope"], "nalar runs list"),
        (["eval", "nope"], "nalar runs list"),
        (["eval", "x", "--task", "countdwn"], "countdown"),
        (["chat", "nope"], "nalar runs list"),
        (["report", "nope"], "nalar runs list"),
        (["runs", "show", "nope"], "nalar runs list"),
        (["demo", "--resume"], "nalar runs list"),
    ],
)
def test_bad_input_exits_with_2_and_says_what_to_try(args, hint, nalar_, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called = nalar_(*args, "--json")
    assert called.code == 2
    assert hint in called.document["error"]["hint"]
    assert called.document["schema_version"] == 1
    assert set(called.document["error"]) == {"at", "got", "want", "hint"}
    assert "Traceback" not in called.err
    assert hint in called.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "at"),
    [
        (["--rl.group-size", "1"], "rl.group_size"),
        (["--packing.step-tokens", "1"], "packing.step_tokens"),
        (["--seed", "x"], "--seed"),
    ],
)
def test_a_value_that_cannot_work_is_named_by_its_field(flags, at, nalar_):
    called = nalar_("plan", *flags, "--json")
    assert called.code == 2
    assert called.document["error"]["at"] == at
    assert "pydantic" not in called.err


def test_exit_codes_and_one_json_document_as_a_program_sees_them(tmp_path):
    good = shell("plan", "zero-tiny", "--json", cwd=tmp_path)
    assert good.returncode == 0
    assert json.loads(good.stdout)["recipe"] == "zero-tiny"
    bad = shell("plan", "zero-tyni", "--json", cwd=tmp_path)
    assert bad.returncode == 2
    assert json.loads(bad.stdout)["error"]["at"]
    assert bad.stderr
    plain = shell("runs", "show", "x", cwd=tmp_path)
    assert (plain.returncode, plain.stdout) == (2, "")


def test_a_failure_of_our_own_exits_with_1_and_still_gives_json(nalar_, monkeypatch):
    def broken() -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("nalar.cli.doctor.examine", broken)
    called = nalar_("doctor", "--json")
    assert called.code == 1
    assert "out of luck" in called.document["error"]["got"]
    assert "Traceback" in called.err


def test_an_interrupt_exits_with_130(nalar_, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nalar.cli.doctor.examine", interrupted)
    assert nalar_("doctor").code == 130


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    command = f"{sys.executable} -m nalar plan zero-tiny --json | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=env(), capture_output=True, text=True
    )
    assert done.stderr == ""


RUN_FOREVER = """
import sys, time, types, nalar.pipeline
from nalar.cli import drive
from nalar.cli.main import main
from nalar.pipeline.preflight import Machine
def run_zero(config, run, observer, should_stop, **_):
    observer.stage_started("pretrain", steps=None)
    print("ready", file=sys.stderr, flush=True)
    while not (should_stop() and len(sys.argv) == 1):
        time.sleep(0.01)
    return "stopped"
nalar.pipeline.zero = types.SimpleNamespace(
    run_zero=run_zero, Outcome=types.SimpleNamespace(STOPPED="stopped"))
drive.this_machine = lambda root: Machine(8, 10**11, 10**12)
sys.exit(main(["demo", "zero-tiny", "--run", "r", "--json"]))
"""


RUN_AND_TALK = """
import json, sys, time, types, nalar.pipeline
from nalar.cli import drive
from nalar.cli.main import main
from nalar.pipeline.preflight import Machine
def run_zero(config, run, observer, should_stop, **_):
    observer.stage_started("pretrain", steps=None)
    for step in range(2000):
        observer.note(f"line {step} " + 40 * "-")
        if step == 1000:
            time.sleep(0.2)  # for a reader to go away
    run.write_json("done.json", {"steps": step})
    return "stopped"
nalar.pipeline.zero = types.SimpleNamespace(
    run_zero=run_zero, Outcome=types.SimpleNamespace(STOPPED="stopped"))
drive.this_machine = lambda root: Machine(8, 10**11, 10**12)
sys.exit(main(["demo", "zero-tiny", *sys.argv[1:]]))
"""


@pytest.mark.few(1)
@pytest.mark.parametrize("redirection", ["| head -n 1", "2>&1 | head -n 1", "| true"])
def test_a_reader_that_goes_away_does_not_take_the_run_along(redirection, tmp_path):
    command = f'"$0" -c "$1" --run r {redirection}; echo ${{PIPESTATUS[0]}} > code'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, RUN_AND_TALK],
        cwd=tmp_path,
        env=env(),
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "code").read_text() == "130\n"  # as run_zero above would have it
    assert json.loads((tmp_path / "runs" / "r" / "done.json").read_text()) == {"steps": 1999}
    said = "nobody reads this output any more; the run goes on and writes runs/r\n"
    assert done.stderr == ("" if redirection.startswith("2>&1") else said)
    assert done.stdout == ("run folder: runs/r\n" if "head" in redirection else "")


@pytest.mark.slow
def test_runs_that_start_at_once_take_folders_of_their_own(tmp_path):
    commands = [[sys.executable, "-c", RUN_AND_TALK, "--json"] for _ in range(2)]
    started = [
        subprocess.Popen(c, cwd=tmp_path, env=env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for c in commands
    ]
    found = {json.loads(process.communicate(timeout=60)[0])["run"] for process in started}
    assert found == {f"runs/zero-tiny-{n}" for n in (1, 2)}
    for name in found:
        assert (tmp_path / name / "done.json").exists()


def test_of_two_runs_that_ask_for_one_name_at_once_one_is_refused(tmp_path):
    command = [sys.executable, "-c", RUN_AND_TALK, "--json", "--run", "r"]
    started = [
        subprocess.Popen(
            command, cwd=tmp_path, env=env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    documents = [json.loads(process.communicate(timeout=60)[0]) for process in started]
    assert sorted(process.returncode for process in started) == [2, 130]
    (error,) = [document["error"] for document in documents if "run" not in document]
    assert error["got"] in ("a run already", "another process at work on it")


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("numbers", "stubborn"),
    [([signal.SIGTERM], []), ([signal.SIGINT] * 2, ["stubborn"]), ([signal.SIGINT], [])],
)
def test_a_signal_ends_a_run_with_130_and_the_command_that_goes_on(numbers, stubborn, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_FOREVER, *stubborn],
        cwd=tmp_path,
        env=env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "ready" not in (line := process.stderr.readline()):
        assert line, "ended before it began"
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.3)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    document = json.loads(out)
    assert document["outcome"] == "stopped"
    assert document["resume"] == "nalar demo --run runs/r --resume"
    assert document["resume"] in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["serve"], ("got no MODEL",)),
        (["adopt"], ("got no FOLDER, no TARGET",)),
        (["sft"], ("got no --model, no --data",)),
        (["serve", "x", "--prices", "1", "2"], ("--prices: got '1', '2'", "wanted: 3 values")),
        (["serve", "x", "--port"], ("--port: got no value",)),
        (
            ["serve", "x", "--device", "gpu"],
            ("--device: got 'gpu'", "one of 'auto', 'cpu', 'cuda'"),
        ),
        (
            ["chat", "--url", "127.0.0.1:8000/v1", "--prompt", "x"],
            ("--url: got '127.0.0.1:8000/v1'",),
        ),
    ],
)
def test_a_flag_that_cannot_be_read_is_told_in_a_line(args, words, capsys):
    assert main(args) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert len(said.splitlines()) <= 3
