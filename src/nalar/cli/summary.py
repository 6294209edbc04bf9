"""Results and forecasts as tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from nalar.cli.display import clock, money
from nalar.pipeline.forecast import Forecast

Results = Mapping[str, Mapping[str, Any]]
"""By task id, each in the form of `results.before` of report.json."""

_ROWS = (
    ("pass@1", "pass_at_1"),
    ("pass@{k}", "pass_at_k"),
    ("majority@{k}", "maj_at_k"),
    ("mean response tokens", "mean_response_tokens"),
    ("with a self-check", "self_check_frac"),
    ("cut by the cap", "truncated_frac"),
)


def results_table(columns: Mapping[str, Results]) -> Table:
    """One column for each set of results, such as before and after; intervals are 95%."""
    table = Table(title="held-out problems", title_justify="left")
    table.add_column("task")
    table.add_column("measure")
    for heading in columns:
        table.add_column(heading, justify="right")
    tasks = {task: result for results in columns.values() for task, result in results.items()}
    for task, first in tasks.items():
        for label, key in _ROWS:
            cells = [figure(key, results.get(task, {}).get(key)) for results in columns.values()]
            if any(cells):
                name = task if key == "pass_at_1" else ""
                table.add_row(name, label.format(k=first["k"]), *cells)
        table.add_section()
    return table


def figure(key: str, value: Any) -> str:
    """A share in percent, an estimate with its interval, a length as it is; nothing where it was not measured."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        low, high = value["ci95"]
        return f"{value['mean']:.1%} [{low:.1%}, {high:.1%}]"
    return f"{value:.1%}" if key.endswith("_frac") else f"{value:.1f}"


def receipt_table(stages: Sequence[Mapping[str, Any]], title: str = "receipt") -> Table:
    """What each stage took, and the sum. Energy is left out where it was not measurable."""
    table = Table(title=title, title_justify="left", show_footer=True)
    energies = [stage.get("energy_wh") for stage in stages]
    total = {
        key: sum(stage[key] for stage in stages) for key in ("tokens", "flops", "wall_s", "usd")
    }
    table.add_column("stage", footer="all")
    table.add_column("tokens", justify="right", footer=f"{total['tokens']:,}")
    table.add_column("FLOPs", justify="right", footer=f"{total['flops']:.2e}")
    table.add_column("time", justify="right", footer=clock(total["wall_s"]))
    table.add_column("price", justify="right", footer=money(total["usd"]))
    has_energy = bool(energies) and None not in energies
    if has_energy:
        wh = sum(e for e in energies if e is not None)
        table.add_column("energy", justify="right", footer=f"{wh:.2f} Wh")
    for stage, energy in zip(stages, energies, strict=True):
        cells = [stage["name"], f"{stage['tokens']:,}", f"{stage['flops']:.2e}"]
        cells += [clock(stage["wall_s"]), money(stage["usd"])]
        table.add_row(*cells, *([f"{energy:.2f} Wh"] if has_energy else []))
    return table


def forecast_lines(plan: Forecast) -> list[str]:
    """The figures of a forecast that are not a stage's."""
    return [
        f"parameters    {plan.total_params:,}, of which {plan.active_params:,} active a token",
        f"operations    {plan.train_flops_per_token:.3g} FLOPs a trained token",
        f"memory        {plan.memory_bytes / 1e9:.2f} GB, interpreter included",
        f"disk          {plan.disk_bytes / 1e6:.0f} MB",
        f"time          about {clock(plan.wall_s)}, at most {money(plan.usd)}",
        "assumed       " + "; ".join(plan.assumptions),
    ]
