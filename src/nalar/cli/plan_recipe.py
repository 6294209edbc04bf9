"""`nalar plan RECIPE`: what a run will take."""

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
    """What NAME takes, by arithmetic. Runs and writes nothing.

    NAME is a recipe, with the flags below: parameters, operations, memory, time and price of a run. Or it is a
    published model, a run, or a folder with a config.json: parameters, operations, bytes of weights and of the
    cache; these take --json and --context N, the length of the sequences that operations are counted for.
    Or it is sft, or a recipe of r1, with the flags of that verb.

    Try:

    nalar plan zero-cpu --rl.steps 200 --price.usd-per-hour 0.10

    nalar plan kimi-k2 --context 32768
    """

    config: Annotated[ZeroConfig, tyro.conf.arg(name="")]
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


def plan_recipe(args: Sequence[str], out: Output) -> int:
    """args: all words of the verb, the recipe's name among them or not."""
    words = recipe_first(args)
    name = flags.peek(words, "--recipe")
    config = recipe(DEFAULT_RECIPE if name is None else name)
    asked = flags.parse(Plan, words, verb="plan", usage="[NAME]", default=Plan(config=config))
    return show_plan(asked.config, None, out)
