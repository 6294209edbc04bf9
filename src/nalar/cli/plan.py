"""`nalar plan`: what a recipe will take."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from nalar.cli import flags
from nalar.cli.choice import recipe, recipe_first
from nalar.cli.drive import show_plan
from nalar.cli.output import Output
from nalar.cli.start import DEFAULT_RECIPE
from nalar.pipeline.config import ZeroConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Parameters, operations, memory, time and price of RECIPE, by arithmetic. Runs and writes nothing.

    Try:

    nalar plan zero-cpu --rl.steps 200 --price.usd-per-hour 0.10
    """

    config: Annotated[ZeroConfig, tyro.conf.arg(name="")]
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    words = recipe_first(args)
    name = flags.peek(words, "--recipe")
    config = recipe(DEFAULT_RECIPE if name is None else name)
    asked = flags.parse(Plan, words, verb="plan", usage="[RECIPE]", default=Plan(config=config))
    return show_plan(asked.config, None, out)
