"""A pipeline in a terminal: what each model can do, what less thought costs, and the bill in the layout of R1's."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nalar.evals import units
from nalar.evals.comparison import task_title
from nalar.evals.r1_report import R1Report, added
from nalar.evals.r1_results import Mode, ModelResult
from nalar.evals.report import Cost
from nalar.evals.results import Estimate
from nalar.evals.text import printable
from nalar.plan.r1_stages import ON_TOP, PUBLISHED, ROWS, STAGES

WAYS: Mapping[Mode, str] = {"off": "no thought", "budget": "a short thought", "on": "all it wants"}


def summary(report: R1Report) -> Group:
    """Everything a terminal should show of a pipeline. Parts that it does not have are left out."""
    parts: list[RenderableType | None] = [
        Text(headline(report)),
        results(report),
        lengths(report),
        switch(report),
        receipt(report),
        Text(printable(report.provenance)) if report.data else None,
    ]
    spaced = [item for part in parts if part is not None for item in (part, Text())]
    return Group(*spaced[:-1])


def headline(report: R1Report) -> str:
    """The pipeline in one sentence."""
    done = [receipt.name for receipt in report.stages if receipt.is_done]
    stages = [name for name in STAGES if report.config.get(name) is not None]
    left = [name for name in stages if name not in done]
    took = f"{units.duration(report.total.wall_s)} and {units.money(report.total.usd)}"
    if not left:
        return f"{report.recipe}: all {len(stages)} stages are done, in {took}."
    count = f"{len(stages) - len(left)} of {len(stages)} stages are done"
    return f"{report.recipe}: {count}, in {took}; left: {', '.join(left)}."


def results(report: R1Report) -> Table | None:
    """A row a model, a column a task: pass@1 with its interval; and who wins against the base."""
    tasks, rated = tasks_of(report), rated_of(report)
    wins = [f"{task_title(task)}: wins" for task in rated]
    table = _table("Held-out problems, pass@1", "model", *map(task_title, tasks), *wins)
    for name, model in report.models.items():
        measured = [model.tasks.get(task) for task in tasks]
        won = [model.win_rate.get(task) for task in rated]
        table.add_row(
            Text(name, style="bold"),
            *(_estimate(result.pass_at_1 if result else None) for result in measured),
            *(_estimate(estimate) for estimate in won),
        )
    return table if table.row_count else None


def lengths(report: R1Report) -> Table | None:
    """Tokens of a response, of which thought, and how readable thoughts are where somebody has measured it."""
    tasks = tasks_of(report)
    table = _table(
        "Tokens of a response (of its thought)", "model", *map(task_title, tasks), "readable"
    )
    for name, model in report.models.items():
        cells = []
        for task in tasks:
            result, thought = model.tasks.get(task), model.thought_tokens.get(task)
            cells.append(
                units.NONE
                if result is None
                else f"{result.mean_response_tokens:.0f} ({thought or 0.0:.0f})"
            )
        table.add_row(Text(name, style="bold"), *cells, units.percent(readable_frac(model)))
    return table if table.row_count else None


def switch(report: R1Report) -> Table | None:
    """With no thought, with a short one, with all they want: models that were taught to be asked so."""
    tasks = [task for task in tasks_of(report) if task not in rated_of(report)]
    table = _table(
        "Thinking off, short and on: pass@1", "model", "asked for", *map(task_title, tasks)
    )
    for name, model in report.models.items():
        if not model.modes:
            continue
        for way, words in WAYS.items():
            found = model.tasks if way == "on" else model.modes.get(way)
            if found is not None:
                cells = [found.get(task) for task in tasks]
                estimates = (_estimate(cell.pass_at_1 if cell else None) for cell in cells)
                table.add_row(Text(name, style="bold"), words, *estimates)
    return table if table.row_count else None


def receipt(report: R1Report) -> Table | None:
    """The bill: a line a stage, a sum a row of R1's own table, with theirs beside it."""
    if not report.stages:
        return None
    price = ""
    if report.usd_per_hour is not None:
        price = f" (price at an assumed {units.money(report.usd_per_hour)} an hour of this machine)"
    table = _table(
        f"Receipt{price}",
        *("stage", "hours", "tokens", "FLOP", "energy", "price"),
        *("R1: H800 hours", "R1: price"),
    )
    for row, title in ROWS.items():
        own = [one for one in report.stages if one.row == row]
        for one in own:
            table.add_row(f"  {one.title}", *_cost(one), "", "")
        if own:
            theirs = PUBLISHED.get(row)
            shown = ("", "") if theirs is None else (_many(theirs.h800_hours), _usd(theirs.usd))
            table.add_row(Text(title, style="bold"), *_cost(added(own)), *shown, style="bold")
    for one in (one for one in report.stages if one.row is None):
        table.add_row(f"  {one.title}", *_cost(one), "", "")
    on_top = [PUBLISHED[row] for row in ON_TOP]
    hours, usd = sum(row.h800_hours for row in on_top), sum(row.usd for row in on_top)
    if report.on_top_of_base.tokens:
        cost = _cost(report.on_top_of_base)
        table.add_row("On top of the base", *cost, _many(hours), _usd(usd), style="bold")
    table.add_row("Total", *_cost(report.total), "", "", style="bold")
    return table


def tasks_of(report: R1Report) -> list[str]:
    """All that any model was measured on, in the order of the first."""
    return list(dict.fromkeys(task for model in report.models.values() for task in model.tasks))


def rated_of(report: R1Report) -> list[str]:
    """Those whose answers are rated, and not only right or wrong."""
    return list(dict.fromkeys(task for model in report.models.values() for task in model.quality))


def readable_frac(model: ModelResult) -> float | None:
    """Mean over the tasks that say it; None where none does."""
    said = [result.model_dump().get("readable_frac") for result in model.tasks.values()]
    known = [share for share in said if share is not None]
    return sum(known) / len(known) if known else None


def _cost(cost: Cost) -> Sequence[str]:
    return (
        f"{cost.wall_s / 3600:.3g}",
        units.scaled(cost.tokens),
        units.scaled(cost.flops),
        units.energy(cost.energy_wh),
        units.money(cost.usd),
    )


def _many(number: float) -> str:
    return f"{number:,.0f}"


def _usd(usd: float) -> str:
    return f"${usd:,.0f}"


def _estimate(value: Estimate | None) -> str:
    return units.NONE if value is None else f"{units.percent(value.mean)} [{units.interval(value)}]"


def _table(title: str, *headers: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left", overflow="fold")
    return table
