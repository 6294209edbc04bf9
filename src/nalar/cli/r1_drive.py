"""Runs a pipeline for `nalar r1`: what it will take, or the folder, the tree of stages, the signals, how it ended."""

import dataclasses
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nalar.cli.choice import free_run_path
from nalar.cli.drive import PlanDocument
from nalar.cli.output import Document, ErrorBody, Output
from nalar.cli.r1_display import watch_r1
from nalar.cli.signals import StopSignal
from nalar.cli.summary import forecast_lines, forecast_table
from nalar.config import UserError
from nalar.data.config import FileSource
from nalar.disk import only_writer
from nalar.evals.r1_report import build_r1, stage_runs
from nalar.evals.r1_table import summary
from nalar.pipeline.collect_config import CollectConfig
from nalar.pipeline.config import RewardRunConfig, RlRunConfig, SftConfig
from nalar.pipeline.preflight import (
    refuse_if_not_installed,
    refuse_if_not_writable,
    refuse_if_too_small,
    this_machine,
)
from nalar.pipeline.r1_config import R1Config
from nalar.pipeline.r1_forecast import forecast_r1, refuse_no_room
from nalar.pipeline.standing import done_stages
from nalar.pipeline.state import Outcome
from nalar.plan.r1_stages import STAGES
from nalar.run import Run
from nalar.tasks.registry import is_file


class R1Document(Document):
    """How a pipeline ended."""

    run: str
    outcome: Literal["finished", "stopped"]
    done: list[str]
    """Stages, in their order."""
    resume: str | None
    """The command that goes on; None where nothing is left to do."""
    report: dict[str, Any] | None
    """r1.json, where all that was asked for is done."""
    error: ErrorBody | None = None


@dataclass(frozen=True)
class R1Job:
    """What is to be done."""

    config: R1Config
    path: Path
    args: tuple[str, ...]
    """The verb's own words, for the record."""
    first: str | None
    last: str | None
    is_new: bool
    is_named: bool
    """False: the path is a proposal, and where another run takes it first the next free one will do."""

    @property
    def resume(self) -> str:
        return shlex.join(["nalar", "r1", "--run", str(self.path), "--resume"])


def show_plan(job: R1Job, out: Output) -> int:
    """Print what a pipeline will take, stage by stage; touches nothing, and runs nothing."""
    config = job.config
    plan = forecast_r1(config)
    if not out.json:
        out.text(config.model_dump_json(indent=2) + "\n")
        how = f"{config.threads} threads, {config.device}, {config.dtype}"
        out.text(f"recipe        {config.recipe}, seed {config.seed}, {how}")
        for line in forecast_lines(plan):
            out.text(line)
        out.text(forecast_table(plan))
        for name in missing_files(config):
            out.text(f"not there yet {name}")
        out.text(f"would write   {job.path} (nothing was written)")
    out.document(
        PlanDocument(
            recipe=config.recipe,
            run=str(job.path),
            config=config.model_dump(mode="json"),
            forecast=plan,
        )
    )
    return 0


def missing_files(config: R1Config) -> list[str]:
    """What a pipeline is to read and is not there: problems, dialogues, judgements, models."""
    named = [name for name in (config.base, config.student_base) if name is not None]
    words = [*config.measure.evals.tasks]
    for stage in config.stages:
        settings = config.settings(stage)
        if isinstance(settings, RlRunConfig):
            words += settings.rl.tasks
        elif isinstance(settings, CollectConfig):
            words += settings.tasks
        elif isinstance(settings, RewardRunConfig):
            named.append(settings.data)
        elif isinstance(settings, SftConfig) and isinstance(settings.data, FileSource):
            named.append(settings.data.path)
    named += [name for word in words if is_file(name := word.partition(",")[0])]
    asked = [name for name in named if not name.startswith("@") and name != "procedural"]
    return [name for name in dict.fromkeys(asked) if not Path(name).expanduser().exists()]


def refuse_missing(config: R1Config) -> None:
    """UserError that names the first file or folder that is not there."""
    for name in missing_files(config):
        hint = "--problems FILE" if is_file(name) else "--base FOLDER"
        raise UserError(
            at=name, got="nothing there", want="a file or a folder that the recipe reads", hint=hint
        )


def drive(job: R1Job, out: Output) -> int:
    """Do the stages and say how it ended. Nothing is written before the checks have passed."""
    job = dataclasses.replace(job, config=_settled(job.config))
    root = job.path.parent
    if job.is_new:
        refuse_if_too_small(job.config, forecast_r1(job.config), this_machine(root))
        refuse_no_room(job.config)
        refuse_missing(job.config)
    refuse_if_not_writable(root)
    refuse_if_not_installed(job.config)
    from nalar.pipeline.r1 import (  # imports torch
        chosen_stages,
        refuse_bad_tasks_of,
        refuse_missing_inputs,
        run_r1,
    )

    chosen = chosen_stages(job.config, job.first, job.last)
    if job.is_new:
        refuse_missing_inputs(job.config, chosen, done=())
        refuse_bad_tasks_of(job.config)
        job = _claimed(job)
    run = _created(job) if job.is_new else Run.open(job.path)
    out.outlive_reader(f"the run goes on and writes {run.path}")
    out.text(f"run folder: {run.path}")
    out.text(f"computing on: {job.config.device}, in {job.config.dtype}")
    before = done_stages(job.config, run)
    try:
        with (
            only_writer(run.path),
            watch_r1(out.console, spent(run), job.config.stages, before) as display,
            StopSignal(display.stopping) as should_stop,
        ):
            outcome = run_r1(job.config, run, display, should_stop, first=job.first, last=job.last)
    except KeyboardInterrupt:
        return _stopped(job, run, out, "stopped at once; the last checkpoint is kept")
    except UserError:
        print(f"to go on: {job.resume}", file=sys.stderr)
        raise
    if outcome is not Outcome.FINISHED:
        return _stopped(job, run, out, "stopped and saved")
    if set(chosen) <= set(before):
        out.text("nothing was left to do: every stage is done")
    return _finished(job, run, out)


def _settled(config: R1Config) -> R1Config:
    """On a device that is here; UserError where what is asked for is not."""
    if config.device == "cpu":
        return config
    from nalar.pipeline.place import settled  # imports torch

    return settled(config)


def _claimed(job: R1Job) -> R1Job:
    """The job at a place that no other process has: of two that start at once, one takes the next number."""
    while not job.is_named:
        try:
            job.path.mkdir(parents=True)
            break
        except FileExistsError:
            job = dataclasses.replace(job, path=free_run_path(job.config.recipe))
    return job


def _created(job: R1Job) -> Run:
    command = shlex.join(["nalar", "r1", *job.args])
    settings = job.config.model_dump(mode="json")
    return Run.create(job.path.parent, job.path.name, settings, command, job.config.seed)


def spent(run: Run) -> dict[str, float]:
    """Money by what displays call it: `rl1/rl`, `measure_rl1`."""
    found = {total.name: total.usd for total in run.stage_totals()}
    for name, own in stage_runs(run).items():
        found |= {f"{name}/{total.name}": total.usd for total in own.stage_totals()}
    return found


def _stopped(job: R1Job, run: Run, out: Output, how: str) -> int:
    out.text(f"{how}. To go on:\n  {job.resume}")
    out.document(
        R1Document(
            run=str(job.path),
            outcome="stopped",
            done=done_stages(job.config, run),
            resume=job.resume,
            report=None,
        )
    )
    return 130


def _finished(job: R1Job, run: Run, out: Output) -> int:
    report, done = build_r1(run), done_stages(job.config, run)
    left = [name for name in job.config.stages if name not in done]
    out.text("")
    out.text(summary(report))
    for line in _how_to_go_on(job, left):
        out.text(line)
    out.document(
        R1Document(
            run=str(job.path),
            outcome="finished",
            done=done,
            resume=job.resume if left else None,
            report=report.model_dump(mode="json"),
        )
    )
    return 0


def _how_to_go_on(job: R1Job, left: Iterable[str]) -> list[str]:
    name = shlex.quote(str(job.path))
    lines = ["", f"The report: {job.path / 'report.html'}", "Go on:"]
    if titles := [STAGES[stage].title.lower() for stage in left]:
        lines.append(f"  {job.resume}    ({', '.join(titles)})")
    return [*lines, f"  nalar chat {name}", f"  nalar runs show {name}"]
