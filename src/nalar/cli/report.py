"""`nalar report`: a run's report, built again from its folder."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from nalar.cli import flags
from nalar.cli.choice import kind_of, open_run
from nalar.cli.output import Output
from nalar.evals import r1_table
from nalar.evals.r1_html import write_r1
from nalar.evals.r1_report import R1Report, build_r1
from nalar.evals.report import Report as Built
from nalar.evals.report import build_report
from nalar.evals.report_html import write_report
from nalar.evals.table import summary
from nalar.pipeline.r1_config import R1Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Build RUN's report.json and report.html again from what the run wrote, finished or not.

    Try, with a name that `nalar runs list` shows:

    nalar report zero-cpu-1
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run's folder: a name under runs/, or a path."""
    dry_run: bool = False
    """Print the report; write nothing."""
    json: bool = False
    """Print report.json on stdout, all else on stderr."""


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    asked = flags.parse(Report, args, verb="report")
    found = open_run(asked.run)
    report: R1Report | Built
    if kind_of(found) is R1Config:
        report = build_r1(found) if asked.dry_run else write_r1(found)
        out.text(r1_table.summary(report))
    else:
        report = build_report(found) if asked.dry_run else write_report(found)
        out.text(summary(report))
    where = "nothing was written" if asked.dry_run else found.path / "report.html"
    out.text(f"report: {where}")
    out.document(report)
    return 0
