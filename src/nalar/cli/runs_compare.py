"""`nalar runs compare`: several runs beside each other."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich import box
from rich.table import Table

from nalar.cli.choice import open_run
from nalar.cli.output import Document, Output
from nalar.config import UserError
from nalar.evals import units
from nalar.evals.comparison import stage_title, task_title
from nalar.evals.results import TaskResult
from nalar.evals.side_by_side import Comparison, compare
from nalar.run import Receipt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare runs: settings that differ, metrics at the end of training, results, receipts.

    Try (two bases of half a minute each, then the tables):

    nalar pretrain zero-tiny --run slow --pretrain.optim.lr 2e-3

    nalar pretrain zero-tiny --run fast --pretrain.optim.lr 1e-2

    nalar runs compare slow fast
    """

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")]
    """Two runs or more: names under runs/, or paths."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


class CompareDocument(Document, Comparison):
    """What `runs compare` prints."""


def show_comparison(asked: Compare, out: Output) -> int:
    if len(asked.runs) < 2:
        raise UserError(
            at="nalar runs compare",
            got=f"{len(asked.runs)} runs",
            want="two or more",
            hint="`nalar runs list` shows the runs there are",
        )
    found = compare([open_run(name) for name in asked.runs])
    for table in _tables(found):
        if table.row_count:
            out.text(table)
            out.text("")
    out.document(CompareDocument(**dict(found)))
    return 0


def _tables(found: Comparison) -> list[Table]:
    settings = _table("Settings that differ", found)
    for row in found.settings:
        settings.add_row(row.name, *map(_setting, row.values))
    environment = _table("Machine and code that differ", found)
    for row in found.environment:
        environment.add_row(row.name, *map(_setting, row.values))
    return [settings, environment, _metrics(found), _results(found), _receipts(found)]


def _metrics(found: Comparison) -> Table:
    table = _table("Last tenth of training, mean", found)
    stage = None
    for row in found.metrics:
        if row.stage != stage:
            stage = row.stage
            table.add_row(stage_title(stage), style="bold")
        table.add_row(f"  {row.name}", *(_number(value) for value in row.values))
    return table


def _results(found: Comparison) -> Table:
    table = _table("Held-out problems, pass@1 with its 95% interval", found)
    for side, tasks in found.results.items():
        for task, results in tasks.items():
            table.add_row(f"{task_title(task)}, {side} RL", *map(_pass_at_1, results))
    return table


def _receipts(found: Comparison) -> Table:
    table = _table("Receipts", found)
    for stage, receipts in found.receipts.items():
        table.add_row(stage_title(stage), *map(_receipt, receipts))
    sums = [
        [total for receipts in found.receipts.values() if (total := receipts[i])]
        for i in range(len(found.runs))
    ]
    if found.receipts:
        table.add_row("all", *map(_sum, sums), style="bold")
    return table


def _table(title: str, found: Comparison) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("", overflow="fold")
    for run in found.runs:
        table.add_column(run.name, justify="right", overflow="fold")
    return table


def _setting(value: Any) -> str:
    if value is None:
        return units.NONE
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: float | None) -> str:
    return units.NONE if value is None else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _pass_at_1(result: TaskResult | None) -> str:
    if result is None:
        return units.NONE
    return f"{units.percent(result.pass_at_1.mean)} [{units.interval(result.pass_at_1)}]"


def _receipt(receipt: Receipt | None) -> str:
    return units.NONE if receipt is None else _sum([receipt])


def _sum(receipts: Sequence[Receipt]) -> str:
    tokens = units.scaled(sum(r.tokens for r in receipts))
    wall_s, usd = sum(r.wall_s for r in receipts), sum(r.usd for r in receipts)
    return f"{tokens} tokens, {units.duration(wall_s)}, {units.money(usd)}"
