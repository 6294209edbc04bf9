"""`nalar runs plot`: a metric of several runs as a picture."""

import dataclasses
from pathlib import Path
from typing import Annotated, get_args

import tyro
from pydantic import BaseModel

from nalar.cli.choice import open_run
from nalar.cli.output import Document, Output
from nalar.config import UserError
from nalar.disk import write_atomic
from nalar.evals.comparison import stage_title
from nalar.evals.run_plot import Axis, Form, draw, series, stage_with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw a metric of one run or several into a file.

    Try (half a minute of training, then the picture):

    nalar pretrain zero-tiny --run base

    nalar runs plot base --metric loss --x tokens --out loss.svg
    """

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")]
    """Names under runs/, or paths."""
    metric: str = "loss"
    """Its name in metrics.jsonl, such as loss, reward or accuracy/countdown."""
    stage: str | None = None
    """None: the first stage that has the metric."""
    x: Axis = "steps"
    """Along the bottom; tokens and seconds are those of the stage."""
    smooth: int | None = None
    """Points of the running mean; 1 for none. None: by the number of points."""
    first_step: int = 0
    """Leave out what was logged before this step: first losses flatten the rest."""
    out: Path = Path("plot.svg")
    """The file to write or replace: .svg, .png or .pdf."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


class PlotSeries(BaseModel):
    """One run's points as they were logged."""

    run: str
    x: list[float]
    y: list[float | None]
    """null where the value was not finite."""


class PlotDocument(Document):
    """What `runs plot` drew."""

    out: str
    stage: str
    metric: str
    x: Axis
    series: list[PlotSeries]


def draw_plot(asked: Plot, out: Output) -> int:
    form = _form(asked)
    runs = [open_run(name) for name in asked.runs]
    stage = stage_with(runs, asked.metric) if asked.stage is None else asked.stage
    lines = series(runs, stage, asked.metric, asked.x, first_step=asked.first_step)
    picture = draw(
        lines,
        title=stage_title(stage),
        axis=asked.x,
        metric=asked.metric,
        form=form,
        window=asked.smooth,
    )
    path = asked.out.expanduser()
    write_atomic(path, picture)
    out.text(f"{asked.metric} of {stage}: {path}")
    shown = [PlotSeries(run=line.run, x=line.x, y=line.y) for line in lines]
    out.document(
        PlotDocument(out=str(path), stage=stage, metric=asked.metric, x=asked.x, series=shown)
    )
    return 0


def _form(asked: Plot) -> Form:
    """What kind of picture the file's name asks for, where all flags can be meant."""
    if not asked.runs:
        raise UserError(
            at="nalar runs plot",
            got="no runs",
            want="one or more",
            hint="`nalar runs list` shows the runs there are",
        )
    if asked.smooth is not None and asked.smooth < 1:
        raise UserError(at="--smooth", got=str(asked.smooth), want="at least 1")
    suffix = asked.out.suffix.lower().removeprefix(".")
    for form in get_args(Form):
        if suffix == form:
            known: Form = form
            return known
    raise UserError(
        at="--out", got=str(asked.out), want="a name that ends in " + ", ".join(get_args(Form))
    )
