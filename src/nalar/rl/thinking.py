"""Which groups of a step are asked with the thought closed. Imports no torch."""

import math
import random

from nalar.rl.config import RLConfig


def thinks(config: RLConfig, *, seed: int, step: int, slot: int) -> bool:
    """Whether the group in a place of a step is asked to think: for all but `no_thinking_frac` of them.

    The places of one task are gone through in order, step after step, and their number times the share, rounded from
    where the seed says, is how many were asked without: so after any number of steps each task's share is exact to
    within one group, whichever places its problems have. A refill is asked as the group in whose place it is.
    """
    frac, words = config.no_thinking_frac, len(config.tasks)
    if not frac:
        return True
    task = slot % words
    each = len(range(task, config.prompts_per_step, words))
    number = step * each + slot // words
    start = random.Random(f"{seed}/thinking/{task}").random()
    return math.floor((number + 1) * frac + start) == math.floor(number * frac + start)
