import json
import types
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

import nalar.pipeline
from nalar.cli import drive
from nalar.cli.main import main
from nalar.evals.report_html import write_report
from nalar.pipeline.config import TaskRunConfig
from nalar.pipeline.preflight import Machine
from nalar.pipeline.tasks import refuse_bad_tasks
from nalar.run import Receipt, Run


class Outcome(StrEnum):
    FINISHED = "finished"
    STOPPED = "stopped"
    PROBE_FAILED = "probe_failed"


TASK_RESULT = {
    "n": 4,
    "k": 8,
    "pass_at_1": {"mean": 0.5, "ci95": [0.4, 0.6]},
    "pass_at_k": {"mean": 0.9, "ci95": [0.8, 1.0]},
    "maj_at_k": {"mean": 0.7, "ci95": [0.6, 0.8]},
    "truncated_frac": 0.1,
    "well_formed_frac": 0.9,
    "mean_response_tokens": 80.0,
    "self_check_frac": None,
}


class FakePipeline:
    """Stands in for pipeline/zero.py: reports two steps of each stage, writes a small report."""

    Outcome = Outcome

    def __init__(self) -> None:
        self.calls: list[types.SimpleNamespace] = []
        self.outcome = Outcome.FINISHED
        self.inside: Callable[[Callable[[], bool]], None] = lambda should_stop: None

    def run_zero(
        self,
        config: Any,
        run: Run,
        observer: Any,
        should_stop: Callable[[], bool],
        *,
        force: bool = False,
        until: str = "report",
    ) -> Outcome:
        call = types.SimpleNamespace(config=config, run=run, force=force, until=until)
        self.calls.append(call)
        observer.stage_started("pretrain", steps=2)
        for step in (1, 2):
            values = {"loss": 1.5, "usd": 0.001 * step, "tokens_per_s": 30_000.0, "wall_s": step}
            observer.step("pretrain", step, values)
        observer.note("probe: recognises its own hits")
        self.inside(should_stop)
        observer.stage_finished("pretrain")
        run.record(Receipt("pretrain", 10, 1e6, 2.0, 0.002, None, "2026-01-01T00:00:00+00:00"))
        if should_stop():
            return Outcome.STOPPED
        if until == "report" and self.outcome is Outcome.FINISHED:
            for when in ("before", "after"):
                run.write_json(f"results_{when}.json", {"countdown": TASK_RESULT})
            write_report(run)
        return self.outcome


_GOOD: set[str] = set()
"""Settings whose tasks were found good: most tests ask for a recipe as it is, and trying its problems takes time."""


def refuse_bad_tasks_once(config: TaskRunConfig) -> None:
    settings = config.model_dump_json()
    if settings not in _GOOD:
        refuse_bad_tasks(config)
        _GOOD.add(settings)


@pytest.fixture(scope="module", autouse=True)
def runs_are_short(short_ways):
    with short_ways():
        yield


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakePipeline:
    """A folder of its own, a machine that is large enough, and a pipeline that takes no time."""
    fake = FakePipeline()
    monkeypatch.setattr(nalar.pipeline, "zero", fake, raising=False)
    monkeypatch.setattr(drive, "this_machine", lambda root: Machine(8, 10**11, 10**12))
    monkeypatch.setattr(drive, "refuse_bad_tasks", refuse_bad_tasks_once)
    monkeypatch.chdir(tmp_path)
    return fake


class Called:
    """What one call of the command line gave."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        """The one JSON document; fails where stdout holds anything else."""
        return json.loads(self.out)


@pytest.fixture
def nalar_(capfd: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    """Call the command line in this process."""

    def call(*args: str) -> Called:
        capfd.readouterr()
        try:
            code = main(args)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Called(code, *capfd.readouterr())

    return call
