"""An evaluation and a forecast as tables for people. The tables of a whole run are `evals/table.py`'s."""

from collections.abc import Mapping

from rich import box
from rich.table import Table

from nalar.evals import units
from nalar.evals.results import Estimate, TaskResult
from nalar.pipeline.forecast import Forecast


def results_table(results: Mapping[str, TaskResult]) -> Table:
    """One column a task; intervals are 95%."""
    table = _table("Held-out problems", "", *results)
    measured = list(results.values())
    k = measured[0].k
    table.add_row("problems × samples", *(f"{r.n} × {r.k}" for r in measured))
    table.add_row("pass@1", *(_estimate(r.pass_at_1) for r in measured))
    if k > 1:
        table.add_row(f"pass@{k}", *(_estimate(r.pass_at_k) for r in measured))
        table.add_row(f"majority@{k}", *(_estimate(r.maj_at_k) for r in measured))
    table.add_row("tokens a response", *(f"{r.mean_response_tokens:.1f}" for r in measured))
    if all(r.thought_frac is not None for r in measured):
        table.add_row("with a thought", *(units.percent(r.thought_frac) for r in measured))
        table.add_row("tokens of thought", *(f"{r.mean_thought_tokens:.1f}" for r in measured))
        table.add_row("the longest thought", *(str(r.longest_thought_tokens) for r in measured))
    table.add_row("with a self-check", *(units.percent(r.self_check_frac) for r in measured))
    if any(r.readable_frac is not None for r in measured):
        table.add_row("readable thoughts", *(units.percent(r.readable_frac) for r in measured))
    table.add_row("well-formed", *(units.percent(r.well_formed_frac) for r in measured))
    table.add_row("cut off by the cap", *(units.percent(r.truncated_frac) for r in measured))
    if any(r.verifier_errors for r in measured):
        table.add_row("verifier errors", *(str(r.verifier_errors) for r in measured))
    if any(r.timeouts for r in measured):
        table.add_row("over their time", *(str(r.timeouts) for r in measured))
    return table


def forecast_table(plan: Forecast) -> Table:
    """What each stage will take, and the sum."""
    table = _table("Estimate", "stage", "tokens", "FLOP", "time", "price")
    for stage in plan.stages:
        table.add_row(
            stage.name,
            units.scaled(stage.tokens),
            units.scaled(stage.flops),
            units.duration(stage.wall_s),
            units.money(stage.usd),
        )
    table.add_row(
        "all, with the start",
        units.scaled(plan.tokens),
        units.scaled(plan.flops),
        units.duration(plan.wall_s),
        units.money(plan.usd),
        style="bold",
    )
    return table


def forecast_lines(plan: Forecast) -> list[str]:
    """The figures of a forecast that are not a stage's."""
    return [
        f"parameters    {plan.total_params:,}, of which {plan.active_params:,} active a token"
        + _trained(plan),
        f"operations    {units.scaled(plan.train_flops_per_token, 'FLOP')} a trained token",
        f"memory        {plan.memory_bytes / 1e9:.2f} GB, interpreter included",
        *([f"of the GPU    {plan.gpu_bytes / 1e9:.2f} GB"] if plan.gpu_bytes else []),
        f"disk          {plan.disk_bytes / 1e6:.0f} MB",
        "assumed       " + "; ".join(plan.assumptions),
    ]


def _trained(plan: Forecast) -> str:
    is_whole = plan.trained_params == plan.total_params
    return "" if is_whole else f"; {plan.trained_params:,} of adapters are trained"


def _estimate(value: Estimate) -> str:
    return f"{units.percent(value.mean)} [{units.interval(value)}]"


def _table(title: str, *headers: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left")
    return table
