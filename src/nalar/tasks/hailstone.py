"""Hailstones: `From 27: n/2 if even, 3n+35 if odd. After 24 steps?`, answered by an integer.

Which step comes next depends on the number that the last one gave, so no expression over + - * / says the answer: who
calculates with a tool has to call it step by step.
"""

import itertools
import random
from collections.abc import Iterator

from nalar.tasks.answers import number_score
from nalar.tasks.config import HailstoneConfig
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score


def expression_of_step(number: int, add: int) -> str:
    """What gives the number after this one: `27*3+35`, `116/2`."""
    return f"{number}*3+{add}" if number % 2 else f"{number}/2"


def numbers_from(start: int, add: int) -> Iterator[int]:
    """The first number and those that follow, without end."""
    number = start
    while True:
        yield number
        number = 3 * number + add if number % 2 else number // 2


class Hailstone(Family):
    """Numbers drawn evenly, of which no step goes beyond the largest or back to where it was before.

    What is held out is a first number with what is added, for any number of steps; a train problem may come by it on
    its way.
    """

    id = "hailstone"

    def __init__(self, config: HailstoneConfig | None = None) -> None:
        self.settings = config or HailstoneConfig()
        super().__init__(self.settings)

    def make(self, rng: random.Random) -> Problem | None:
        config = self.settings
        steps = rng.randint(config.min_steps, config.max_steps)
        start, add = rng.randint(2, config.max_start), rng.randrange(1, config.max_add + 1, 2)
        numbers = list(itertools.islice(numbers_from(start, add), steps + 1))
        if max(numbers) > config.max_value or len(set(numbers)) <= steps:
            return None
        return Problem(
            task=self.id,
            key=f"hailstone:{start},{add}|{steps}",
            prompt=f"From {start}: n/2 if even, 3n+{add} if odd. After {steps} steps?",
            data={"start": start, "add": add, "steps": steps, "value": numbers[-1]},
        )

    def gold(self, problem: Problem) -> str:
        return str(problem.data["value"])

    def score(self, problem: Problem, answer: str) -> Score:
        return number_score(answer, problem.data["value"])

    def guess(self, rng: random.Random, problem: Problem) -> str:
        return self.another_answer(rng)
