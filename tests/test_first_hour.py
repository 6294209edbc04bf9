"""The page for newcomers, typed as it stands: a base, a task, RL, a kill, going on, samples."""

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")
TASK = ROOT / "docs" / "examples" / "my_task.py"
TYPED = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FIRST_ROLLOUT_S = 60
"""Of processor time, which on two cores is no less than what passes."""


def test_the_page_shows_the_whole_task_and_it_is_short():
    shown = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown == [TASK.read_text(encoding="utf-8")]
    assert len(shown[0].splitlines()) < 30


@pytest.fixture
def type_(tmp_path, monkeypatch):
    """Types a block of the page into a shell; gives what it printed and the processor time that it took."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "nalar"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m nalar.cli.main "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(TASK, home)

    def type_(block: str) -> tuple[str, float]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            ["bash", "-c", block], cwd=home, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    type_.home = home
    return type_


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_can_be_typed_as_it_stands(type_):
    pretrain, dry, killed, resume, samples, preset = TYPED
    run = type_.home / "runs" / "above"
    type_(pretrain)
    assert "nothing was written" in type_(dry)[0]
    # What the shell says of the kill is not an error; `wait` lets the test see what the process has used.
    _, used_s = type_(killed + "wait $! || true\n")
    assert used_s < FIRST_ROLLOUT_S
    assert "rl" not in json.loads((run / "state.json").read_text())["done"]
    type_(resume)
    results = [
        json.loads((run / f"results_{when}.json").read_text())["my_task"]["pass_at_1"]["mean"]
        for when in ("before", "after")
    ]
    assert results[0] < 0.3 and results[1] > 0.7
    shown, _ = type_(samples)
    assert "step 1 of runs/above (kept: 1, 25, 30)" in shown and "step 30 of" in shown
    assert "well formed" in shown and "problem 0" in shown
    assert (run / "report.html").exists()
    assert '"name": "dr_grpo"' in type_(preset)[0]
