"""What a test of a reward model came to, in a terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from nalar.evals import units
from nalar.evals.results import Estimate
from nalar.evals.reward_results import RewardResults
from nalar.evals.text import printable


def reward_table(results: RewardResults) -> Table:
    """A line a figure: what it is, its value, its 95% interval, what it should be."""
    noun = "pairs" if results.kind == "preference" else "answers"
    table = Table(
        title=f"{results.kind} model on {results.n:,} {noun} that it was not trained on",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for i, header in enumerate(("", "", "", "without bias")):
        table.add_column(header, justify="left" if i in (0, 3) else "right", overflow="fold")
    _shares(table, results)
    position, length = results.position, results.length
    if results.kind == "preference":
        changed = units.percent(position.verdicts_changed_frac)
        table.add_row("verdicts that change with the order", changed, "", "0.0%")
        table.add_row(
            "largest change of a margin by order", f"{position.largest_by_order:.1e}", "", "0"
        )
        first = units.percent(position.first_preferred_frac)
        table.add_row("the side given first is preferred", first, "", "50%")
    company = f"{position.largest_by_company:.1e}"
    table.add_row("largest change by company", company, "", "rounding alone")
    correlation = length.correlation
    shown = units.NONE if correlation is None else f"{correlation:+.2f}"
    table.add_row("score and length, at equal quality", shown, "", "0")
    table.add_row("calibration error", units.percent(results.calibration_error), "", "0%")
    table.add_row("log loss", f"{results.log_loss:.3f}", "", "below 0.693")
    return table


def _shares(table: Table, results: RewardResults) -> None:
    length = results.length
    _share(table, "accuracy", results.accuracy, is_main=True)
    _share(table, "  safe answers passed", results.safe_passed)
    _share(table, "  unsafe answers caught", results.unsafe_caught)
    _share(table, "  the worse side is longer", length.worse_longer, want="as the next")
    _share(table, "  the worse side is shorter", length.worse_shorter, want="as the one before")
    for flaw, share in results.by_flaw.items():
        _share(table, f"  {printable(flaw)}", share)


def _share(
    table: Table, label: str, share: Estimate | None, *, want: str = "", is_main: bool = False
) -> None:
    if share is not None:
        value = Text(units.percent(share.mean), style="bold" if is_main else "")
        table.add_row(label, value, Text(units.interval(share), style="dim"), want)
