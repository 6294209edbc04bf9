"""`nalar demo`: a recipe from random weights to a report."""

import dataclasses
from collections.abc import Sequence

from nalar.cli.start import RecipeFlags, start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(RecipeFlags):
    """From random weights to a model that learned to reason: pretrain, probe, evaluate, RL, evaluate, report.

    Ctrl-C finishes the step, saves, and says how to go on; a second Ctrl-C stops at once.

    Try (about a minute on two cores):

    nalar demo --recipe zero-tiny --seed 3
    """


def run(args: Sequence[str]) -> int:
    return start("demo", Demo, args, until="report")
