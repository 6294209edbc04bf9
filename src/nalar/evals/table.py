"""The report in a terminal: what changed, what it stands beside, what it cost."""

import io
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from nalar.evals import units
from nalar.evals.comparison import baseline_rows, headline, measures, stage_title, task_title
from nalar.evals.plots import smooth, task_ids, window_of
from nalar.evals.report import Curve, Report, Response, SamplePair
from nalar.evals.results import Estimate
from nalar.evals.text import printable
from nalar.tasks.traces import HIT, MISS

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_COLOURS = {"above": "green", "below": "red", HIT: "green", MISS: "red"}
_SHOWN_LINES = 12
"""Lines of a thought shown in a terminal; the page shows all."""


def summary(report: Report, *, plot_width: int = 48) -> Group:
    """Everything a terminal should show at the end of a run. Parts that the run does not have are left out."""
    parts: list[RenderableType | None] = [
        Text(headline(report)),
        before_after(report),
        baselines(report),
        curves(report, width=plot_width),
        receipt(report),
    ]
    spaced = [item for part in parts if part is not None for item in (part, Text())]
    return Group(*spaced[:-1])


def plain(renderable: RenderableType, *, width: int = 100) -> str:
    """The same as text without colour, for a log or a terminal that is not one."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def before_after(report: Report) -> Table | None:
    """All tasks, before and after RL, with 95% intervals."""
    table = _table("Before and after RL", "", "before", "", "after", "")
    for task in task_ids(report):
        rows = measures(report, task)
        if rows:
            shown = report.results.after.get(task) or report.results.before[task]
            size = f"{shown.n} problems × {shown.k} samples"
            table.add_row(Text.assemble((task_title(task), "bold"), (f"  {size}", "dim")))
        for row in rows:
            table.add_row(
                f"  {row.label}",
                row.before or units.NONE,
                _interval(row.before_estimate),
                Text(row.after or units.NONE, style="bold"),
                _interval(row.after_estimate),
            )
    return table if table.row_count else None


def baselines(report: Report) -> Table | None:
    """What is reached without a model, and how the model stands to it."""
    table = _table("Without a model", "", "pass@1", "", "tries", "the model is")
    task = None
    for row in baseline_rows(report):
        if row.task != task:
            task = row.task
            table.add_row(Text(task_title(task), style="bold"))
        table.add_row(
            Text(f"  {row.label}"),
            units.percent(row.pass_at_1.mean),
            _interval(row.pass_at_1),
            "" if row.mean_tries is None else f"{row.mean_tries:.1f}",
            Text(row.standing or units.NONE, style=_COLOURS.get(row.standing or "", "")),
        )
    return table if table.row_count else None


def receipt(report: Report) -> Table | None:
    """The bill: a line a stage, and the total."""
    if report.total is None:
        return None
    price = ""
    if report.usd_per_hour is not None:
        price = f" (price at an assumed {units.money(report.usd_per_hour)} an hour)"
    table = _table(f"Receipt{price}", "stage", "tokens", "FLOP", "time", "energy", "price")
    for stage in [*report.stages, report.total]:
        is_total = stage is report.total
        table.add_row(
            "Total" if is_total else stage_title(getattr(stage, "name", "")),
            units.scaled(stage.tokens),
            units.scaled(stage.flops),
            units.duration(stage.wall_s),
            units.energy(stage.energy_wh),
            units.money(stage.usd),
            style="bold" if is_total else "",
        )
    return table


def curves(report: Report, *, width: int = 48) -> Table | None:
    """Accuracy and length over RL as small plots, one a task, side by side."""
    found = report.curves
    tasks = [task for task in task_ids(report) if task in found.accuracy]
    if not tasks:
        return None
    table = _table("Over RL, on train problems", "", *(task_title(task) for task in tasks))
    for column in table.columns[1:]:
        column.justify = "left"
    each = max(12, width // len(tasks))
    table.add_row("accuracy", *(_plot(found.accuracy[t], each, top=1.0) for t in tasks))
    lengths = [found.response_tokens.get(task) for task in tasks]
    table.add_row("tokens", *(_plot(c, each, top=None) if c else units.NONE for c in lengths))
    return table


def samples(report: Report, *, count: int = 2) -> Table | None:
    """The same problems before and after, `count` of each task."""
    table = _table("The same problem, before and after RL", "before", "after")
    for column in table.columns:
        column.justify, column.ratio = "left", 1
    table.expand, table.show_lines = True, True
    for task in task_ids(report):
        pairs = [pair for pair in report.samples if pair.task == task]
        for pair in pairs[:count]:
            table.add_row(_sample(pair, pair.before), _sample(pair, pair.after))
    return table if table.row_count else None


def _sample(pair: SamplePair, response: Response | None) -> Text:
    text = Text(printable(pair.prompt), style="bold")
    if response is None:
        return text.append("\nnot sampled", style="dim")
    lines = printable(response.thought).splitlines()
    thought = Text("\n" + "\n".join(lines[:_SHOWN_LINES]), style="not bold dim")
    if len(lines) > _SHOWN_LINES:
        thought.append(f"\n… {len(lines) - _SHOWN_LINES} more lines")
    for mark in (HIT, MISS):
        thought.highlight_words([mark], style=f"not dim {_COLOURS[mark]}")
    verdict = HIT if response.correct else MISS
    answer = Text(f"\n→ {printable(response.answer) or units.NONE} ", style="not dim")
    return text.append_text(thought).append_text(answer).append(verdict, style=_COLOURS[verdict])


def block_plot(
    values: Iterable[float | None], *, width: int, height: int, top: float | None = None
) -> list[str]:
    """Lines of blocks, the highest first; each column is the mean of its share of the values."""
    columns = _columns(list(values), width)
    known = [value for value in columns if value is not None]
    ceiling = top if top is not None else max(known, default=1.0)
    steps = [
        0 if value is None or ceiling <= 0 else _steps(value / ceiling, height) for value in columns
    ]
    return [
        "".join(_EIGHTHS[min(8, max(0, step - 8 * row))] for step in steps)
        for row in reversed(range(height))
    ]


def _steps(share: float, height: int) -> int:
    """Eighths of a line; at least one, so that a zero shows as a value and not as a gap."""
    return max(1, round(min(1.0, max(0.0, share)) * 8 * height))


def _columns(values: Sequence[float | None], width: int) -> list[float | None]:
    width = min(width, len(values))
    means: list[float | None] = []
    for i in range(width):
        share = values[i * len(values) // width : (i + 1) * len(values) // width]
        known = [value for value in share if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def _plot(curve: Curve, width: int, *, top: float | None) -> Text:
    """Smoothed, with its first and last value under it."""
    line = smooth(curve.y, window_of(len(curve.y)))
    known = [value for value in line if value is not None]
    if not known:
        return Text(units.NONE)
    rows = block_plot(line, width=width, height=3, top=top)
    first, last = (units.percent(v, 0) if top else f"{v:.0f}" for v in (known[0], known[-1]))
    ends = f"{first}{last:>{max(1, len(rows[0]) - len(first))}}"
    return Text("\n".join(rows), style="cyan").append(f"\n{ends}", style="not cyan dim")


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


def _interval(value: Estimate | None) -> Text:
    return Text(units.interval(value) if value else "", style="dim")
