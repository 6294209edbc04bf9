"""A metric of several runs in one picture: each line faint as it was logged, strong as its running mean.

matplotlib is imported where it is used: it takes a second.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nalar.config import UserError, nearest
from nalar.evals.plots import smooth, window_of
from nalar.evals.side_by_side import can_be_added, labels
from nalar.evals.text import printable
from nalar.run import Metric, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Axis = Literal["steps", "tokens", "seconds"]
Form = Literal["svg", "png", "pdf"]

SIZE_IN = (7.0, 4.2)
STAGES = ("pretrain", "sft", "rl", "evaluate_base", "evaluate_final")
"""Where a metric is looked for, in this order."""
# Okabe and Ito's palette, which people with any colour vision tell apart; then the same, dashed.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("solid", "dashed", "dotted", "dashdot")
_X_KEYS = {"tokens": "tokens", "seconds": "wall_s"}
_X_LABELS = {
    "steps": "steps",
    "tokens": "tokens of the stage",
    "seconds": "seconds of the stage",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nalar",
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
}


@dataclass(frozen=True)
class Series:
    """One run's line; y is None where it was not finite."""

    run: str
    x: list[float]
    y: list[float | None]


def stage_with(runs: Sequence[Run], metric: str) -> str:
    """The first stage in which a run logged the metric; UserError that names the nearest where none did."""
    known: dict[str, None] = {}
    for stage in STAGES:
        for run in runs:
            names = _names(run.metrics(stage))
            if metric in names:
                return stage
            known |= names
    raise _unknown_metric(metric, known, at=", ".join(labels(runs)))


def series(
    runs: Sequence[Run], stage: str, metric: str, axis: Axis, *, first_step: int = 0
) -> list[Series]:
    """A line for each run; UserError where one has not logged the metric."""
    lines = []
    for label, run in zip(labels(runs), runs, strict=True):
        logged = run.metrics(stage)
        points = [m for m in logged if metric in m.values and m.step >= first_step]
        if not points:
            if metric in _names(logged):
                raise UserError(
                    at="--first-step",
                    got=str(first_step),
                    want=f"at most {logged[-1].step}, the last step of {stage} that {label} logged",
                )
            raise _unknown_metric(metric, _names(logged), at=f"{label}, stage {stage}")
        lines.append(_series(label, points, metric, axis))
    return lines


def _series(label: str, points: Sequence[Metric], metric: str, axis: Axis) -> Series:
    """Points of which nobody knows where they lie are left out."""
    key = _X_KEYS.get(axis)
    placed = [(float(m.step) if key is None else m.values.get(key, math.nan), m) for m in points]
    placed = [(x, m) for x, m in placed if math.isfinite(x)]
    ys = [m.values[metric] for _, m in placed]
    return Series(label, [x for x, _ in placed], [y if can_be_added(y) else None for y in ys])


def draw(
    lines: Sequence[Series], *, title: str, axis: Axis, metric: str, form: Form, window: int | None
) -> bytes:
    """A picture's file. window: points of the running mean, 1 for none; None: by the number of points."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user has set up
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=SIZE_IN, layout="constrained")
        axes = figure.add_subplot()
        handles = [_line(axes, line, place, window) for place, line in enumerate(lines)]
        axes.set_title(printable(title), loc="left")
        axes.set_xlabel(_X_LABELS[axis])
        axes.set_ylabel(printable(metric))
        axes.legend(handles, [_legend_text(line.run) for line in lines], frameon=False)
        out = io.BytesIO()
        figure.savefig(out, format=form, dpi=150, metadata=_no_date(form))
    return out.getvalue()


def _line(axes: "Axes", line: Series, place: int, window: int | None) -> Any:
    """The line to name in the legend."""
    width = window_of(len(line.y)) if window is None else window
    colour = _COLOURS[place % len(_COLOURS)]
    dash = _DASHES[place // len(_COLOURS) % len(_DASHES)]
    style: Any = {"color": colour, "linestyle": dash, "solid_capstyle": "round"}
    if len(line.x) == 1:
        style["marker"] = "o"
    if width > 1:
        axes.plot(line.x, _with_gaps(line.y), linewidth=0.8, alpha=0.35, **style)
    return axes.plot(line.x, _with_gaps(smooth(line.y, width)), linewidth=1.6, **style)[0]


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _legend_text(name: str) -> str:
    # matplotlib leaves out of a legend what begins with an underscore
    text = printable(name)
    return f" {text}" if text.startswith("_") else text


def _no_date(form: Form) -> dict[str, Any]:
    """The same figures make the same file."""
    return {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[form]


def _names(logged: Sequence[Metric]) -> dict[str, None]:
    return dict.fromkeys(name for line in logged for name in line.values)


def _unknown_metric(metric: str, known: dict[str, None], *, at: str) -> UserError:
    close = nearest(metric, known)
    return UserError(
        at=at,
        got=f"no metric {metric!r}",
        want="one of " + ", ".join(sorted(known)) if known else "a run that has logged a step",
        hint=close and f"did you mean {close}?",
    )
