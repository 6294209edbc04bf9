"""Runs the pipeline for the verbs that do: a dry run, or the folder, the display, the signals, and how it ended."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from nalar.cli.choice import free_run_path, stored_config
from nalar.cli.display import watch
from nalar.cli.output import Document, ErrorBody, Output
from nalar.cli.signals import StopSignal
from nalar.cli.summary import forecast_lines, forecast_table
from nalar.config import UserError, refuse_change
from nalar.disk import only_writer
from nalar.evals.report import build_report
from nalar.evals.reward_results import REWARD_RESULTS, RewardResults
from nalar.evals.reward_table import reward_table
from nalar.evals.table import samples, summary
from nalar.evals.text import printable
from nalar.machine import environment
from nalar.pipeline.collect_config import CollectConfig
from nalar.pipeline.config import (
    RewardRunConfig,
    RlRunConfig,
    RunConfig,
    SftConfig,
    TaskRunConfig,
    ZeroConfig,
)
from nalar.pipeline.forecast import Forecast, forecast
from nalar.pipeline.observer import Observer
from nalar.pipeline.preflight import (
    refuse_if_no_data,
    refuse_if_not_installed,
    refuse_if_not_writable,
    refuse_if_too_small,
    this_machine,
)
from nalar.pipeline.state import Outcome
from nalar.pipeline.tasks import refuse_bad_tasks, sizes_of_files
from nalar.run import ROLLOUTS, Run

AnyConfig = ZeroConfig | RlRunConfig | SftConfig | CollectConfig | RewardRunConfig
C = TypeVar("C", bound=RunConfig)
Until = Literal["pretrain", "report"]


class PlanDocument(Document):
    """What `plan` and `--dry-run` print."""

    recipe: str
    run: str | None
    """The folder that would be written to; None where none would."""
    config: dict[str, Any]
    """Resolved: every field."""
    forecast: Forecast


class RunDocument(Document):
    """How a run ended."""

    run: str
    outcome: Literal["finished", "stopped", "probe_failed"]
    resume: str | None
    """The command that goes on; None where nothing is left to do."""
    report: dict[str, Any] | None
    """report.json, where the run came that far."""
    reward: dict[str, Any] | None = None
    """reward.json, of a run of `reward`."""
    collected: dict[str, Any] | None = None
    """collect.json, of a run of `collect`."""
    error: ErrorBody | None = None


@dataclass(frozen=True)
class Job:
    """What a verb wants done."""

    verb: str
    config: AnyConfig
    path: Path
    args: tuple[str, ...]
    """The verb's own words, for the record."""
    is_new: bool = True
    """False: the folder is there, and goes on."""
    is_named: bool = True
    """False: the path is a proposal, and where another run takes it first the next free one will do."""
    until: Until = "report"
    force: bool = False
    """Go on after a probe that failed."""

    @property
    def resume(self) -> str:
        """The command that goes on with it, to be pasted."""
        words = [str(self.path)] if self.verb == "rl" else ["--run", str(self.path), "--resume"]
        return shlex.join(["nalar", self.verb, *words, *(["--force"] if self.force else [])])


def show_plan(config: AnyConfig, path: Path | None, out: Output) -> int:
    """Print what a config will take and, where a run would be written to `path`, all of it; touches nothing."""
    if path:
        _refuse_bad_input(config)
        config = _settled(config)
    plan = _planned(config)
    settings = config.model_dump(mode="json")
    if not out.json:
        how = f"{config.threads} threads, {config.device}, {config.dtype}"
        out.text(f"recipe        {config.recipe}, seed {config.seed}, {how}")
        for line in forecast_lines(plan):
            out.text(line)
        for line in sizes_of_files(config) if path and isinstance(config, TaskRunConfig) else ():
            out.text(f"problems      {line}")
        out.text(forecast_table(plan))
        if path:
            out.text(f"would write   {path} (nothing was written)\n")
            # Last and dense, so that what is asked about most is not scrolled away; --json has it in full lines.
            for name, value in settings.items():
                out.text(f"{name:<13} {json.dumps(value, ensure_ascii=False)}")
    where = None if path is None else str(path)
    out.document(PlanDocument(recipe=config.recipe, run=where, config=settings, forecast=plan))
    return 0


def _planned(config: AnyConfig) -> Forecast:
    if isinstance(config, ZeroConfig):
        return forecast(config)
    if isinstance(config, RlRunConfig):
        from nalar.pipeline.rl import plan_rl  # imports torch

        return plan_rl(config)
    if isinstance(config, RewardRunConfig):
        from nalar.pipeline.reward import plan_reward  # imports torch

        return plan_reward(config)
    if isinstance(config, CollectConfig):
        from nalar.pipeline.collect import plan_collect  # imports torch

        return plan_collect(config)
    from nalar.pipeline.sft import plan_sft  # imports torch

    return plan_sft(config)


def _refuse_bad_input(config: AnyConfig) -> None:
    """UserError where what a run reads or is asked is not there, or not to be trusted."""
    refuse_if_no_data(config)
    if isinstance(config, TaskRunConfig):
        refuse_bad_tasks(config)


def go_on_config(run: Run, flagged: C) -> C:
    """The run's own config; UserError where flags ask for another."""
    stored = stored_config(run, type(flagged))
    refuse_change(flagged.model_dump(mode="json"), stored.model_dump(mode="json"), at=run.path)
    return stored


def drive(job: Job, out: Output) -> int:
    """Run the stages and say how it ended. Nothing is written before the checks have passed."""
    root = job.path.parent
    job = dataclasses.replace(job, config=_settled(job.config))
    if job.is_new:
        _refuse_bad_input(job.config)
    # What began with a model that was there needs it no more when it goes on, and by that its size was told.
    if job.is_new or isinstance(job.config, ZeroConfig):
        refuse_if_too_small(job.config, _planned(job.config), this_machine(root))
    refuse_if_not_writable(root)
    refuse_if_not_installed(job.config)
    if job.is_new:
        job = _claimed(job)
    run = _create(job) if job.is_new else Run.open(job.path)
    out.outlive_reader(f"the run goes on and writes {run.path}")
    spent = {total.name: total.usd for total in run.stage_totals()}
    out.text(f"run folder: {run.path}")
    out.text(f"computing on: {job.config.device}, in {job.config.dtype}")
    if job.is_new and isinstance(job.config, TaskRunConfig):
        for line in sizes_of_files(job.config):
            out.text(f"problems of {line}")
    if not job.is_new and (moved := _moved(run)):
        out.text(f"this run began with {moved}: it goes on, but not to the bit")
    try:
        with (
            only_writer(run.path),
            watch(out.console, spent) as display,
            StopSignal(display.stopping) as should_stop,
        ):
            outcome = _train(job, run, display, should_stop)
    except KeyboardInterrupt:
        return _stopped(job, out, f"stopped at once; {_kept(run)}")
    except UserError:
        print(f"to go on: {job.resume}", file=sys.stderr)
        raise
    if outcome == Outcome.STOPPED:
        return _stopped(job, out, "stopped and saved")
    if outcome == Outcome.PROBE_FAILED:
        return _probe_failed(job, run, out)
    return _finished(job, run, out)


def _train(job: Job, run: Run, observer: Observer, should_stop: Callable[[], bool]) -> Outcome:
    """Imports torch."""
    if isinstance(job.config, SftConfig):
        from nalar.pipeline.sft import run_sft

        return run_sft(job.config, run, observer, should_stop)
    if isinstance(job.config, RewardRunConfig):
        from nalar.pipeline.reward import run_reward

        return run_reward(job.config, run, observer, should_stop)
    if isinstance(job.config, RlRunConfig):
        from nalar.pipeline.rl import run_rl

        return run_rl(job.config, run, observer, should_stop)
    if isinstance(job.config, CollectConfig):
        from nalar.pipeline.collect import run_collect

        return run_collect(job.config, run, observer, should_stop)
    from nalar.pipeline import zero

    return zero.run_zero(job.config, run, observer, should_stop, force=job.force, until=job.until)


def _settled(config: AnyConfig) -> AnyConfig:
    """On a device that is here; UserError where what is asked for is not."""
    if config.device == "cpu":
        return config  # without loading torch
    from nalar.pipeline.place import settled

    return settled(config)


def _moved(run: Run) -> str | None:
    """What is not as it was when the run began, and rounds differently; None where all is."""
    then, here = run.info.environment, environment()
    libraries = [name for name in ("torch", "numpy") if name in then.packages]
    before: dict[str, str | None] = {
        "cpu": then.cpu,
        "gpu": then.gpu,
        **{name: then.packages[name] for name in libraries},
    }
    now: dict[str, str | None] = {
        "cpu": here.cpu,
        "gpu": here.gpu,
        **{name: here.packages.get(name) for name in libraries},
    }
    changes = [
        f"{name} {before[name]} (now {now[name]})" for name in before if before[name] != now[name]
    ]
    return ", ".join(changes) or None


def _claimed(job: Job) -> Job:
    """The job at a place that no other process has: of two that start at once, one takes the next number."""
    while not job.is_named:
        try:
            job.path.mkdir(parents=True)
            break
        except FileExistsError:
            job = dataclasses.replace(job, path=free_run_path(job.config.recipe))
    return job


def _create(job: Job) -> Run:
    command = shlex.join(["nalar", job.verb, *job.args])
    settings = job.config.model_dump(mode="json")
    return Run.create(job.path.parent, job.path.name, settings, command, job.config.seed)


def _kept(run: Run) -> str:
    """What there is to go on from."""
    is_saved = (run.path / "model").exists()
    return "the last checkpoint is kept" if is_saved else "nothing was saved yet"


def _stopped(job: Job, out: Output, how: str) -> int:
    out.text(f"{how}. To go on:\n  {job.resume}")
    out.document(RunDocument(run=str(job.path), outcome="stopped", resume=job.resume, report=None))
    return 130


def _probe_failed(job: Job, run: Run, out: Output) -> int:
    force = job.resume if job.force else f"{job.resume} --force"
    error = UserError(
        at=f"{run.path}: probe",
        got="a base that is not ready for RL (probe.json says why)",
        want="a base that recognises its own hits: RL would unlearn to search",
        hint=f"more --pretrain.max-slices in a new run, or all the same: {force}",
    )
    print(printable(str(error)), file=sys.stderr)
    out.document(
        RunDocument(
            run=str(run.path),
            outcome="probe_failed",
            resume=force,
            report=None,
            error=ErrorBody.of(error),
        )
    )
    return 1


def _tested(job: Job, run: Run, out: Output) -> int:
    """The end of a run of `reward`."""
    results = RewardResults.model_validate(run.read_json(REWARD_RESULTS))
    out.text("")
    out.text(reward_table(results))
    for line in _how_to_go_on(job, has_report=False):
        out.text(line)
    reward = results.model_dump(mode="json")
    ended = RunDocument(
        run=str(run.path), outcome="finished", resume=None, report=None, reward=reward
    )
    out.document(ended)
    return 0


def _finished(job: Job, run: Run, out: Output) -> int:
    if isinstance(job.config, RewardRunConfig):
        return _tested(job, run, out)
    is_sft, is_collect = (isinstance(job.config, kind) for kind in (SftConfig, CollectConfig))
    has_report = is_sft or (job.until == "report" and not is_collect)
    report = build_report(run) if has_report else None
    if report is not None:
        shown = samples(report, count=1)
        for part in (shown, summary(report)):
            if part is not None:
                out.text("")
                out.text(part)
    for line in _how_to_go_on(job, has_report=report is not None):
        out.text(line)
    out.document(
        RunDocument(
            run=str(run.path),
            outcome="finished",
            resume=None,
            report=None if report is None else report.model_dump(mode="json"),
            collected=run.read_json("collect.json") if is_collect else None,
        )
    )
    return 0


def _how_to_go_on(job: Job, *, has_report: bool) -> Sequence[str]:
    name = shlex.quote(str(job.path))
    if isinstance(job.config, SftConfig):
        return ("", "Go on:", f"  nalar chat {name}", f"  nalar report {name}")
    if isinstance(job.config, RewardRunConfig):
        part = f"rl.reward.{job.config.kind}"
        flags = f"--{part} 0.5 --{part}-model {name}"
        return ("", "In RL:", f"  nalar rl --model MODEL --task TASK {flags}")
    if isinstance(job.config, CollectConfig):
        data = shlex.quote(str(job.path / "dataset.jsonl"))
        return ("", "Go on:", f"  nalar sft --model MODEL --data {data}")
    if not has_report:
        return ("", "The base is trained. Go on:", f"  nalar rl {name}", f"  nalar eval {name}")
    shown = [f"  nalar samples {name}"] if (job.path / ROLLOUTS).is_dir() else []
    return (
        "",
        f"The report: {job.path / 'report.html'}",
        "Go on:",
        *shown,
        f"  nalar chat {name}",
        f"  nalar eval {name}",
    )
