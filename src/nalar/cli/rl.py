"""`nalar rl`: from a pretrained run to its report."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from nalar.cli import flags
from nalar.cli.choice import open_run, stored_config
from nalar.cli.drive import Job, drive, show_plan
from nalar.cli.output import Output
from nalar.config import UserError
from nalar.pipeline.config import ZeroConfig
from nalar.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rl:
    """Go on from a run that has a pretrained base: evaluate it, RL, evaluate again, report. Resumes what was cut off.

    Try, after `nalar pretrain zero-tiny --run base`:

    nalar rl base
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run's folder: a name under runs/, or a path."""
    force: bool = False
    """Go on even where the probe says that the base is not ready."""
    dry_run: bool = False
    """Print the run's config, parameters, memory, hours and price; write nothing."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    asked = flags.parse(Rl, args, verb="rl")
    found = open_run(asked.run)
    config = stored_config(found, ZeroConfig)
    _refuse_without_base(found)
    if asked.dry_run:
        return show_plan(config, found.path, out)
    job = Job(
        verb="rl",
        config=config,
        path=found.path,
        args=tuple(args),
        is_new=False,
        force=asked.force,
    )
    return drive(job, out)


def _refuse_without_base(found: Run) -> None:
    if found.stage_total("pretrain") is None or not (found.path / "model").exists():
        raise UserError(
            at=str(found.path),
            got="a run without a pretrained base",
            want="a run that has finished pretraining",
            hint=f"nalar pretrain --run {found.path} --resume",
        )
