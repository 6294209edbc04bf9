"""Several runs beside each other: settings that differ, where training ended, what was measured, what it cost."""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, TypeVar

from nalar.evals.report import Report, build_report
from nalar.evals.results import Finite, TaskResult
from nalar.run import Receipt, Run

T = TypeVar("T")

STAGES = ("pretrain", "sft", "rl")
"""Those that log steps of training."""
FINAL_FRAC = 0.1
"""Of a stage's lines, from its end: what a final metric is the mean of."""
_TOTALS = {"tokens", "wall_s", "usd", "energy_wh"}
"""In the receipts, and so not among the metrics."""
_HUGE = 1e100


class Compared(Finite):
    """One run, as a column."""

    name: str
    path: str
    created: str
    is_complete: bool


class Row(Finite):
    """One thing, with a value for each run in their order; None: a run does not have it, or it is off."""

    name: str
    values: list[Any]


class MetricRow(Finite):
    """The mean over the last tenth of what was logged, at least one line; values that are not finite left out."""

    stage: str
    name: str
    values: list[float | None]


class Comparison(Finite):
    """Every list of values has the order of `runs`."""

    runs: list[Compared]
    settings: list[Row]
    """Dotted names of the config's fields that differ."""
    environment: list[Row]
    """What differs of machine, code and packages."""
    metrics: list[MetricRow]
    results: dict[str, dict[str, list[TaskResult | None]]]
    """`before` and `after` RL: by task."""
    receipts: dict[str, list[Receipt | None]]
    """By stage, resumed parts added up."""


def compare(runs: Sequence[Run]) -> Comparison:
    """Read-only. UserError where a file of a run is broken."""
    reports = [build_report(run) for run in runs]
    return Comparison(
        runs=[
            Compared(
                name=name,
                path=str(run.path),
                created=report.created,
                is_complete=report.is_complete,
            )
            for name, run, report in zip(labels(runs), runs, reports, strict=True)
        ],
        settings=_differing([flattened(run.info.config) for run in runs]),
        environment=_differing([_environment(report) for report in reports]),
        metrics=[row for stage in STAGES for row in _final_metrics(runs, stage)],
        results={
            "before": _by_name([r.results.before for r in reports]),
            "after": _by_name([r.results.after for r in reports]),
        },
        receipts=_by_name([{t.name: t for t in run.stage_totals()} for run in runs]),
    )


def labels(runs: Sequence[Run]) -> list[str]:
    """The folders' names, or the paths where two have one name."""
    names = [run.path.name for run in runs]
    return [str(r.path) if names.count(n) > 1 else n for n, r in zip(names, runs, strict=True)]


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name; a list is one value."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _environment(report: Report) -> dict[str, Any]:
    here = {"commit": report.commit, "dirty": report.dirty, **report.hardware.model_dump()}
    return here | {f"packages.{name}": version for name, version in report.software.items()}


def _differing(each: Sequence[Mapping[str, Any]]) -> list[Row]:
    rows = []
    for name in dict.fromkeys(name for one in each for name in one):
        values = [one.get(name) for one in each]
        if len({json.dumps(value, sort_keys=True) for value in values}) > 1:
            rows.append(Row(name=name, values=values))
    return rows


def _by_name(each: Sequence[Mapping[str, T]]) -> dict[str, list[T | None]]:
    names = dict.fromkeys(name for one in each for name in one)
    return {name: [one.get(name) for one in each] for name in names}


def _final_metrics(runs: Sequence[Run], stage: str) -> list[MetricRow]:
    finals = [_finals(run, stage) for run in runs]
    names = dict.fromkeys(name for final in finals for name in final if name not in _TOTALS)
    rows = [MetricRow(stage=stage, name=n, values=[f.get(n) for f in finals]) for n in names]
    return [row for row in rows if any(value is not None for value in row.values)]


def _finals(run: Run, stage: str) -> dict[str, float | None]:
    lines = run.metrics(stage)
    last = [line.values for line in lines[-max(1, round(FINAL_FRAC * len(lines))) :]]
    found: dict[str, float | None] = {}
    for name in dict.fromkeys(name for values in last for name in values):
        finite = [v[name] for v in last if name in v and can_be_added(v[name])]
        found[name] = fmean(finite) if finite else None
    return found


def can_be_added(value: float) -> bool:
    """Finite, and far enough from the end of what a float holds."""
    return abs(value) < _HUGE
