"""The report as one page that needs nothing beside itself. All that a model wrote is escaped."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from nalar.evals import plots, units
from nalar.evals.comparison import baseline_rows, headline, measures, stage_title, task_title
from nalar.evals.report import Report, build_report
from nalar.evals.text import printable
from nalar.run import Run
from nalar.tasks.traces import HIT, MISS

_MARK = re.compile(f"({HIT}|{MISS})")


@dataclass(frozen=True)
class Figure:
    """One plot and what is said under it."""

    title: str
    svg: str
    """Our own: it holds no text but numbers and fixed words."""
    caption: str
    tasks: Sequence[str]
    """Tasks for its legend."""


def write_report(run: Run) -> Report:
    """Build the report of a run and write `report.json` and `report.html` into its folder."""
    report = build_report(run)
    run.write_text("report.json", report.model_dump_json(indent=2) + "\n")
    run.write_text("report.html", render_html(report, folder=shown_folder(run.path)))
    return report


def shown_folder(path: Path) -> str:
    """A run's folder as a reader elsewhere may know it: its name and that of the folder around it."""
    whole = path.resolve()
    return f"{whole.parent.name}/{whole.name}" if whole.parent.name else whole.name


def render_html(report: Report, *, folder: str) -> str:
    """`folder` stands in the commands that say how to go on."""
    return _template().render(
        report=report,
        folder=folder,
        headline=headline(report),
        tasks=plots.task_ids(report),
        measures=measures,
        baseline_rows=baseline_rows(report),
        stage_title=stage_title,
        figures=_figures(report),
        config=json.dumps(report.config, indent=2, ensure_ascii=False),
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=units.percent,
        interval=units.interval,
        scaled=units.scaled,
        duration=units.duration,
        money=units.money,
        energy=units.energy,
        size=units.size,
        task_title=task_title,
        marked=marked,
        printable=printable,
        commas=lambda number: f"{number:,}",
    )
    source = files("nalar.evals").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source)


def marked(thought: str) -> list[tuple[str, str]]:
    """A thought in pieces, each with the class that colours it: `hit`, `miss` or none."""
    pieces = (piece for piece in _MARK.split(printable(thought)) if piece)
    return [(piece, {HIT: "hit", MISS: "miss"}.get(piece, "")) for piece in pieces]


def _figures(report: Report) -> list[Figure]:
    curves, tasks = report.curves, plots.task_ids(report)
    lines = list(curves.accuracy.values())
    window = plots.window_of(len(lines[0].x)) if lines else 1
    over = f"Faint: each step, on train problems. Line: mean over {window} steps."
    drawn = [
        (
            "Accuracy over RL",
            plots.accuracy_plot(report),
            f"{over} Circles: pass@1 on held-out problems with its 95% interval.",
            tasks,
        ),
        (
            "Length of a response over RL, in tokens",
            plots.length_plot(report),
            f"{over} Circles: held-out problems.",
            tasks,
        ),
        ("Reward over RL", plots.step_plot("reward", curves.reward), over, []),
        (
            "Entropy of the next token over RL, in nats",
            plots.step_plot("entropy", curves.entropy),
            "Of what was trained on. Where it falls to 0 the model says the same every time.",
            [],
        ),
        (
            "Loss in pretraining",
            plots.loss_plot(report),
            "Mean next-token loss in nats; the steep start is cut off.",
            [],
        ),
    ]
    return [Figure(t, svg, c, legend) for t, svg, c, legend in drawn if svg is not None]
