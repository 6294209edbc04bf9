"""`nalar runs`: the runs there are, what is in one, several beside each other."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import tyro
from pydantic import BaseModel
from rich.table import Table

from nalar.cli import flags
from nalar.cli.choice import RUNS, kind_of, open_run
from nalar.cli.output import Document, Output
from nalar.cli.runs_compare import Compare, show_comparison
from nalar.cli.runs_plot import Plot, draw_plot
from nalar.config import UserError
from nalar.evals import r1_table, units
from nalar.evals.r1_report import build_r1, stage_runs
from nalar.evals.report import build_report
from nalar.evals.table import summary
from nalar.pipeline.r1_config import R1Config
from nalar.plan.r1_stages import MEASURE
from nalar.run import Receipt, Run, add_up, run_folders


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


Runs = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
)


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
    """One run, with its config and its report."""

    config: dict[str, Any]
    report: dict[str, Any]
    """As far as the run came; the form of report.json, of a pipeline that of r1.json."""


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    if not args or args[0] == "--json":
        args = ["list", *args]
    # A union has no class of its own; to tyro it is as good as one.
    asked: List | Show | Compare | Plot = flags.parse(Runs, args, verb="runs")  # type: ignore[arg-type]
    if isinstance(asked, Compare):
        return show_comparison(asked, out)
    if isinstance(asked, Plot):
        return draw_plot(asked, out)
    return _show(asked.run, out) if isinstance(asked, Show) else _list(out)


def _list(out: Output) -> int:
    found: list[RunSummary] = []
    unreadable: list[str] = []
    for path in run_folders(RUNS):
        try:
            found.append(_summary(Run.open(path)))
        except UserError as error:
            unreadable.append(f"{path}: {error.got}")
        except OSError as error:
            unreadable.append(f"{path}: {error.strerror}")
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
    item = _summary(found)
    out.text(f"{found.path}  {item.created}  seed {item.seed}\n  {item.command}\n")
    if kind_of(found) is R1Config:
        pipeline = build_r1(found)
        out.text(r1_table.summary(pipeline))
        if begun := stage_runs(found):
            out.text(f"\nEach stage is a run: nalar runs show {next(iter(begun.values())).path}")
        form = pipeline.model_dump(mode="json")
    else:
        report = build_report(found)
        out.text(summary(report))
        form = report.model_dump(mode="json")
    out.document(RunDetails(**dict(item), config=found.info.config, report=form))
    return 0


def _summary(found: Run) -> RunSummary:
    return RunSummary(
        name=found.path.name,
        path=str(found.path),
        created=found.info.created,
        command=found.info.command,
        seed=found.info.seed,
        stages=_receipts(found),
        has_report=(found.path / "report.html").is_file(),
    )


def _receipts(found: Run) -> list[Receipt]:
    """One a stage; of a pipeline one for each of its stages' runs, and those of its own."""
    own = found.stage_totals()
    if kind_of(found) is not R1Config:
        return own
    inner = [
        replace(receipt, name=name)
        for name, one in stage_runs(found).items()
        for receipt in one.ledger()
    ]
    return [*add_up(inner).values(), *own]


def _cells(item: RunSummary) -> tuple[str, ...]:
    names = ", ".join(s.name for s in item.stages if not s.name.startswith(MEASURE))
    wall_s, usd = sum(s.wall_s for s in item.stages), sum(s.usd for s in item.stages)
    return (
        item.name,
        item.created,
        names,
        units.duration(wall_s),
        units.money(usd),
        "yes" if item.has_report else "",
    )
