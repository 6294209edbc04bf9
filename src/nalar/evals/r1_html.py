"""A pipeline as one page that needs nothing beside itself. All that a model wrote is escaped."""

import json
from functools import lru_cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from nalar.evals import plots, r1_table, units
from nalar.evals.comparison import task_title
from nalar.evals.r1_report import JSON, R1Report, added, build_r1
from nalar.evals.report_html import Figure, shown_folder
from nalar.evals.results import Estimate
from nalar.evals.text import printable
from nalar.plan.r1_stages import ON_TOP, PUBLISHED, ROWS
from nalar.run import Run


def write_r1(run: Run) -> R1Report:
    """Build the report of a pipeline and write `r1.json` and `report.html` into its folder."""
    report = build_r1(run)
    run.write_text(JSON, report.model_dump_json(indent=2) + "\n")
    run.write_text("report.html", render_r1(report, folder=shown_folder(run.path)))
    return report


def render_r1(report: R1Report, *, folder: str) -> str:
    """`folder` stands in the commands that say how to go on."""
    return _template().render(
        report=report,
        folder=folder,
        headline=r1_table.headline(report),
        tasks=r1_table.tasks_of(report),
        rated=r1_table.rated_of(report),
        ways=r1_table.WAYS,
        readable=r1_table.readable_frac,
        rows=ROWS,
        added=added,
        published=PUBLISHED,
        on_top=[PUBLISHED[row] for row in ON_TOP],
        figures=figures(report),
        config=json.dumps(report.config, indent=2, ensure_ascii=False),
    )


def figures(report: R1Report) -> list[Figure]:
    """Accuracy and length over the models, in the order in which they were made."""
    models, tasks = list(report.models), r1_table.tasks_of(report)
    accuracy: dict[str, list[Estimate | None]] = {}
    lengths: dict[str, list[Estimate | None]] = {}
    for task in tasks:
        results = [model.tasks.get(task) for model in report.models.values()]
        accuracy[task] = [result.pass_at_1 if result else None for result in results]
        means = [result.mean_response_tokens if result else None for result in results]
        lengths[task] = [None if m is None else Estimate(mean=m, ci95=(m, m)) for m in means]
    drawn = [
        (
            "Accuracy by model",
            plots.model_plot("models-accuracy", models, accuracy, is_share=True),
            "pass@1 on held-out problems, the same for all models, with its 95% interval.",
        ),
        (
            "Length of a response by model, in tokens",
            plots.model_plot("models-length", models, lengths, is_share=False),
            "Thought and answer, on held-out problems.",
        ),
    ]
    return [Figure(title, svg, words, tasks) for title, svg, words in drawn if svg is not None]


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
        printable=printable,
        hours=lambda seconds: f"{seconds / 3600:.3g}",
        commas=lambda number: f"{number:,.0f}",
    )
    room = files("nalar.evals")
    page = room.joinpath("report.html.jinja").read_text(encoding="utf-8")
    # The page looks as a run's does.
    style = page[page.index("<style>") : page.index("</style>") + len("</style>")]
    source = room.joinpath("r1.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source.replace("<!-- the style of report.html.jinja -->", style))
