"""Lessons on sorting numbers: take the next of what is left, and write what is left then."""

import random

from nalar.config import ConfigError
from nalar.data.corpora.lesson import Worked
from nalar.tasks.config import SortingConfig
from nalar.tasks.problem import Problem
from nalar.tasks.sorting import Sorting

_ENDS = {"from small to large": min, "from large to small": max}


class SortingLesson(Worked):
    """`Sort from small to large: 31 4 15` is worked as `4:31 15,15:31,31`.

    All problems have as many numbers, so none of the shorter lists in a thought is a problem.
    """

    def __init__(self, config: SortingConfig) -> None:
        if config.items != "numbers" or config.min_items != config.max_items:
            raise ConfigError(
                at="corpus.lessons",
                got=f"{config.min_items} to {config.max_items} {config.items} to sort",
                want="sorting,items=numbers with min_items=max_items",
            )
        super().__init__(Sorting(config))
        self._most = config.max_items - 1
        self._top = config.max_number

    def work(self, rng: random.Random, problem: Problem, slip_frac: float) -> tuple[list[str], str]:
        how, _, items = problem.prompt.removeprefix("Sort ").partition(": ")
        left, steps, order = items.split(), list[str](), list[str]()
        while left:
            taken = self._next(rng, how, left, slip_frac)
            left.remove(taken)
            order.append(taken)
            steps.append(f"{taken}:{' '.join(left)}" if left else taken)
        return steps, " ".join(order)

    def _next(self, rng: random.Random, how: str, left: list[str], slip_frac: float) -> str:
        if rng.random() < slip_frac:
            return rng.choice(left)
        return _ENDS[how](left, key=int)

    def piece(self, rng: random.Random, slip_frac: float) -> str:
        how = rng.choice(tuple(_ENDS))
        left = [str(n) for n in rng.sample(range(self._top + 1), rng.randint(2, self._most))]
        return f"{how}: {' '.join(left)}: {self._next(rng, how, left, slip_frac)}"
