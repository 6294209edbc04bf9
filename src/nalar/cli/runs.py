"""`nalar runs`: the runs there are, and what is in one."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from pydantic import BaseModel
from rich.table import Table

from nalar.cli import flags
from nalar.cli.choice import RUNS, open_run
from nalar.cli.display import clock, money
from nalar.cli.drive import show_report
from nalar.cli.output import Document, Output
from nalar.cli.summary import receipt_table
from nalar.config import UserError
from nalar.run import Receipt, Run, run_folders


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """List the runs under runs/.

    Try:

    nalar runs list
    """

    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """Show one run: what was asked, what it took, what came out.

    Try, with a name that `nalar runs list` shows:

    nalar runs show zero-cpu-1
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run's folder: a name under runs/, or a path."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


Runs = Annotated[List, tyro.conf.subcommand("list")] | Annotated[Show, tyro.conf.subcommand("show")]


class RunSummary(BaseModel):
    """One run, as the list has it."""

    name: str
    path: str
    created: str
    command: str
    seed: int
    stages: list[Receipt]
    """What each stage took so far, resumed parts added up."""
    has_report: bool


class RunList(Document):
    """All runs under runs/. A folder that cannot be read is named, not dropped."""

    runs: list[RunSummary]
    unreadable: list[str]


class RunDetails(Document, RunSummary):
    """One run, with its config and, where there is one, its report."""

    config: dict[str, Any]
    report: dict[str, Any] | None


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    if not args or args[0] == "--json":
        args = ["list", *args]
    # A union has no class of its own; to tyro it is as good as one.
    asked: List | Show = flags.parse(Runs, args, verb="runs")  # type: ignore[arg-type]
    return _show(asked.run, out) if isinstance(asked, Show) else _list(out)


def _list(out: Output) -> int:
    found: list[RunSummary] = []
    unreadable: list[str] = []
    for path in run_folders(RUNS):
        try:
            found.append(_summary(Run.open(path)))
        except UserError as error:
            unreadable.append(f"{path}: {error.got}")
    table = Table("run", "begun", "stages done", "time", "price", "report")
    for item in found:
        table.add_row(*_cells(item))
    if found:
        out.text(table)
    else:
        out.text(f"no runs under {RUNS}/ yet; try: nalar demo")
    for line in unreadable:
        out.text(f"not readable: {line}", style="yellow")
    out.document(RunList(runs=found, unreadable=unreadable))
    return 0


def _show(name: str, out: Output) -> int:
    found = open_run(name)
    has_report = (found.path / "report.json").is_file()
    report = found.read_json("report.json") if has_report else None
    summary = _summary(found)
    out.text(f"{found.path}  {summary.created}  seed {summary.seed}\n  {summary.command}")
    if report:
        show_report(report, out)
    elif summary.stages:
        out.text(receipt_table([dataclasses.asdict(stage) for stage in summary.stages]))
    else:
        out.text("no stage is done yet")
    fields = summary.model_dump(exclude={"stages"})
    out.document(
        RunDetails(**fields, stages=summary.stages, config=found.info.config, report=report)
    )
    return 0


def _summary(found: Run) -> RunSummary:
    return RunSummary(
        name=found.path.name,
        path=str(found.path),
        created=found.info.created,
        command=found.info.command,
        seed=found.info.seed,
        stages=found.stage_totals(),
        has_report=(found.path / "report.json").is_file(),
    )


def _cells(item: RunSummary) -> tuple[str, ...]:
    names = ", ".join(stage.name for stage in item.stages)
    wall_s, usd = sum(s.wall_s for s in item.stages), sum(s.usd for s in item.stages)
    return (
        item.name,
        item.created,
        names,
        clock(wall_s),
        money(usd),
        "yes" if item.has_report else "",
    )
