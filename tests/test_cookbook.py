"""The cookbook, typed as it stands: each page's files are written, its commands run in order, its words found."""

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nalar.cli.main import main
from nalar.evals.r1_report import R1Report

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAVED = re.compile(r"`(\w+\.py)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"`(\w+\.jsonl)`[^`]*(?:`\w+`[^`]*)?:?\n\n```json\n(.*?)^```$", re.M | re.DOTALL)
SHORT = 90
"""Lines of a page."""

Typed = dict[str, str]
"""What each command of a page printed."""


def page(name: str) -> str:
    return (DOCS / f"cookbook-{name}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def runs_are_short(short_ways):
    with short_ways():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The reader's folder, with the examples copied into it."""
    home = tmp_path_factory.mktemp("home")
    for name in ("tiny_qwen.py", "tiny_data.py"):
        shutil.copy(DOCS / "examples" / name, home)
    return home


@pytest.fixture(scope="module")
def type_(home) -> Callable[[str], Typed]:
    """Saves the files of a page and types its commands, each in this process."""

    def type_(name: str) -> Typed:
        text = page(name)
        for file, source in SAVED.findall(text):
            (home / file).write_text(source)
        lines = [
            line for kind, block in BLOCK.findall(text) if not kind for line in block.splitlines()
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(home)
            patch.setenv("COLUMNS", "200")
            patch.setenv("HOME", str(home))  # where tokenised dialogues are kept
            return {line: _do(line) for line in lines}

    return type_


def _do(line: str) -> str:
    program, *words = shlex.split(line)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        if program == "python":
            patch.setattr(sys, "argv", words)
            runpy.run_path(words[0], run_name="__main__")
        else:
            assert program == "nalar"
            assert main(words) == 0, f"{line}\n{printed.getvalue()}"
    return printed.getvalue()


@pytest.fixture(scope="module")
def model(type_) -> Typed:
    """The first page, on which the others build."""
    return type_("model")


def said(typed: Typed, beginning: str) -> str:
    """What the one command printed that begins so."""
    (found,) = [text for line, text in typed.items() if line.startswith(beginning)]
    return found


@pytest.mark.parametrize("name", ["model", "data", "reward"])
def test_a_page_is_short(name):
    assert len(page(name).splitlines()) < SHORT


@pytest.mark.slow
def test_a_model_of_ones_own(model, home):
    (shown,) = re.findall(r"```text\n(.*?)```", page("model"), re.DOTALL)
    assert said(model, "nalar adopt") == shown
    losses = [
        json.loads((home / "runs" / "tuned" / f"held_out_{when}.json").read_text())["loss"]
        for when in ("before", "after")
    ]
    assert losses[0] > 5 and losses[1] < 0.5
    assert percent(said(model, "nalar eval"), "well-formed") > 50
    assert percent(said(model, "nalar eval"), "pass@1") > 40
    (answer,) = re.findall(r"marks: `(.*)`", page("model"))
    assert said(model, "python load.py").strip() == answer
    assert (home / "runs" / "tuned" / "model" / "adapter" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_data_of_ones_own(model, type_, home):
    for file, lines in SHOWN.findall(page("data")):
        assert (home / file).read_text().startswith(lines)
    typed = type_("data")
    kept = re.search(r"kept (\d+) of 128 samples", said(typed, "nalar collect"))
    assert kept and int(kept[1]) > 20
    assert "nothing was written" in said(typed, "nalar r1 r1-from-hf --base qwen")
    assert "all 7 stages are done" in said(typed, "nalar r1 r1-from-hf --base tuned")
    report = R1Report.model_validate_json((home / "runs" / "small" / "r1.json").read_text())
    assert report.is_complete and list(report.models) == [
        "base", "zero", "dev1", "dev2", "dev3", "final"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_reward_of_ones_own(model, type_, home):
    assert [file for file, _ in SHOWN.findall(page("reward"))] == ["pairs.jsonl"]
    for file, lines in SHOWN.findall(page("reward")):
        assert (home / file).read_text().startswith(lines)
    typed = type_("reward")
    assert "nothing was written" in said(
        typed, "nalar rl --model tuned --task remainder.py --dry-run"
    )
    samples = said(typed, "nalar samples shaped")
    assert "well formed" in samples and "length" in samples and "0.30" in samples
    assert percent(said(typed, "nalar reward"), "accuracy") > 75
    assert "preference" in said(typed, "nalar samples pleased")


def percent(table: str, row: str) -> float:
    found = re.search(rf"^\s*{re.escape(row)}\s+([\d.]+)%", table, re.MULTILINE)
    assert found, table
    return float(found[1])
