"""The plots of a report, as SVG to stand inside a page: colours are CSS variables of the page, text is text.

matplotlib is imported where it is used: it takes a second.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nalar.evals.report import Curve, Report
from nalar.evals.results import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_IN, HEIGHT_IN = 5.0, 2.9
TASK_COLOURS = ("--task-1", "--task-2", "--task-3", "--task-4")
"""CSS variables, by the place of a task among the report's tasks."""
# What matplotlib is told to draw with, and the variable that takes its place.
_INK = {"#010101": "--ink", "#020202": "--muted", "#030303": "--rule", "#040404": "--paper"}
_TASK_HEX = ("#0a0a0a", "#0b0b0b", "#0c0c0c", "#0d0d0d")
_VARIABLES = {**_INK, **dict(zip(_TASK_HEX, TASK_COLOURS, strict=True))}
_TEXT, _FAINT, _RULE, _PAPER = _INK
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _TEXT,
    "text.parse_math": False,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _RULE,
    "grid.linewidth": 0.7,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _FAINT,
    "ytick.labelcolor": _FAINT,
    "ytick.major.size": 0,
}


def task_ids(report: Report) -> list[str]:
    """All tasks that a report knows, in a fixed order: their place sets their colour."""
    results, curves = report.results, report.curves
    return list(dict.fromkeys([*results.before, *results.after, *curves.accuracy]))


def smooth(values: Sequence[float | None], window: int) -> list[float | None]:
    """Mean over a window centred on each value, narrower at the ends; gaps are left out of it."""
    reach = window // 2
    means: list[float | None] = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - reach) : i + reach + 1] if v is not None]
        means.append(math.fsum(near) / len(near) if near else None)
    return means


def window_of(count: int) -> int:
    """How many of `count` points one smoothed point averages: an odd number."""
    return 2 * (count // 24) + 1


def accuracy_plot(report: Report) -> str | None:
    """Accuracy on train problems over RL, and pass@1 on test problems before and after it."""
    tests = [
        {task: result.pass_at_1 for task, result in side.items()}
        for side in (report.results.before, report.results.after)
    ]

    def dress(axes: "Axes") -> None:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f}%")

    return _rl_plot("accuracy", report, report.curves.accuracy, tests, dress)


def length_plot(report: Report) -> str | None:
    """Mean tokens of a response over RL, and on test problems before and after it."""
    tests = []
    for side in (report.results.before, report.results.after):
        means = {task: result.mean_response_tokens for task, result in side.items()}
        tests.append({task: Estimate(mean=m, ci95=(m, m)) for task, m in means.items()})

    def dress(axes: "Axes") -> None:
        axes.set_ylim(bottom=0)

    return _rl_plot("length", report, report.curves.response_tokens, tests, dress)


def step_plot(name: str, curve: Curve | None) -> str | None:
    """What a step of RL has one value of, over steps."""
    if curve is None:
        return None

    def draw(axes: "Axes") -> None:
        _line(axes, curve, _TASK_HEX[0])
        axes.set_xlabel("RL step")

    return _svg(name, draw)


def loss_plot(report: Report) -> str | None:
    """Loss of pretraining over tokens."""
    curve = report.curves.loss
    if curve is None:
        return None

    def draw(axes: "Axes") -> None:
        _line(axes, curve, _TASK_HEX[0], scale=1e-6)
        axes.set_xlabel("million tokens")
        smoothed = [y for y in smooth(curve.y, window_of(len(curve.y))) if y is not None]
        if smoothed:  # the first steps are far above the rest and would flatten it
            low, high = min(smoothed), smoothed[len(smoothed) // 12]
            spread = max(high - low, 1e-3)
            axes.set_ylim(low - 0.1 * spread, high + 0.1 * spread)

    return _svg("loss", draw)


def model_plot(
    name: str,
    models: Sequence[str],
    lines: Mapping[str, Sequence[Estimate | None]],
    *,
    is_share: bool,
) -> str | None:
    """One line a task over models, in the order in which they were made; None: not measured. With 95% intervals."""
    if len(models) < 2 or not lines:
        return None

    def draw(axes: "Axes") -> None:
        for place, values in enumerate(lines.values()):
            colour = _TASK_HEX[place % len(_TASK_HEX)]
            ys = [math.nan if value is None else value.mean for value in values]
            axes.plot(range(len(models)), ys, color=colour, linewidth=1.8)
            for x, value in enumerate(values):
                if value is not None:
                    _point(axes, x, value, colour)
        axes.set_xticks(range(len(models)), models)
        axes.set_xlim(-0.3, len(models) - 0.7)
        axes.set_ylim(bottom=0)
        if is_share:
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f}%")

    return _svg(name, draw)


def _rl_plot(
    name: str,
    report: Report,
    curves: Mapping[str, Curve],
    tests: Sequence[Mapping[str, Estimate]],
    dress: "Callable[[Axes], None]",
) -> str | None:
    if not curves:
        return None
    last = max(x for curve in curves.values() for x in curve.x)

    def draw(axes: "Axes") -> None:
        for place, task in enumerate(task_ids(report)):
            colour = _TASK_HEX[place % len(_TASK_HEX)]
            if task in curves:
                _line(axes, curves[task], colour)
            for x, side in zip((0.0, last), tests, strict=True):
                if task in side:
                    _point(axes, x, side[task], colour)
        axes.set_xlabel("RL step")
        axes.set_xlim(-0.02 * last, 1.02 * last)
        dress(axes)

    return _svg(name, draw)


def _line(axes: "Axes", curve: Curve, colour: str, *, scale: float = 1.0) -> None:
    """The values, faint, under their running mean."""
    xs = [x * scale for x in curve.x]
    mean = smooth(curve.y, window_of(len(curve.y)))
    for values, width, alpha in ((curve.y, 0.8, 0.4), (mean, 1.8, 1.0)):
        ys = [math.nan if y is None else y for y in values]
        axes.plot(xs, ys, color=colour, linewidth=width, alpha=alpha, solid_capstyle="round")


def _point(axes: "Axes", x: float, value: Estimate, colour: str) -> None:
    """A measurement on test problems: an open circle with its interval."""
    style: Any = {"color": colour, "clip_on": False, "zorder": 5}
    axes.plot([x, x], list(value.ci95), linewidth=1.4, **style)
    axes.plot([x], [value.mean], "o", markersize=6, mfc=_PAPER, mew=1.6, **style)


def _svg(name: str, draw: "Callable[[Axes], None]") -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user has set up
        matplotlib.rcParams.update(_STYLE)
        # a fixed salt keeps ids the same from build to build, and apart between plots of one page
        matplotlib.rcParams["svg.hashsalt"] = name
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        out = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=metadata)
    return _for_page(out.getvalue(), name)


def _for_page(svg: str, name: str) -> str:
    """Cut what a page does not need (prologue, namespaces, ids nobody refers to), and let it choose colour and font."""
    svg = svg[svg.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r' xmlns(:\w+)?="[^"]*"'):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg class="plot" role="img" aria-label="{name}"', 1)
