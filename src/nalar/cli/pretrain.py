"""`nalar pretrain`: a recipe's base model, up to its probe."""

import dataclasses
from collections.abc import Sequence

from nalar.cli.start import RecipeFlags, start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(RecipeFlags):
    """Train the base model of RECIPE and stop before it is evaluated; `nalar rl` goes on from there.

    Try (under a minute on two cores):

    nalar pretrain zero-tiny --pretrain.optim.lr 5e-3
    """


def run(args: Sequence[str]) -> int:
    return start("pretrain", Pretrain, args, until="pretrain")
