"""Lessons on linear equations of one unknown: what stands before it, what is left, and their quotient."""

import random
import re

from nalar.config import ConfigError
from nalar.data.corpora.lesson import Worked, off_by_one
from nalar.tasks.config import LinearConfig
from nalar.tasks.linear import Linear
from nalar.tasks.problem import Problem

_SIDE = re.compile(r"(?:([-+]?\d*)x)?([-+]?\d+)?")


class LinearLesson(Worked):
    """`Solve 3x+5=2x-4 for x.` is worked as `3-2=1,-4-5=-9,-9/1=-9`: nothing in it is an equation of its own."""

    def __init__(self, config: LinearConfig) -> None:
        if config.unknowns != 1 or config.max_denominator != 1:
            raise ConfigError(
                at="corpus.lessons",
                got=f"{config.unknowns} unknowns, denominators up to {config.max_denominator}",
                want="linear equations of one unknown with integers as solutions",
            )
        super().__init__(Linear(config))
        self._top = config.max_coefficient
        self._solution = config.max_solution

    def work(self, rng: random.Random, problem: Problem, slip_frac: float) -> tuple[list[str], str]:
        left, right = problem.prompt.removeprefix("Solve ").removesuffix(" for x.").split("=")
        (a, b), (c, d) = side(left), side(right)
        factor, first = self._difference(rng, a, c, slip_frac)
        rest, second = self._difference(rng, d, b, slip_frac)
        quotient = off_by_one(rng, round(rest / factor) if factor else 0, slip_frac)
        return [first, second, f"{rest}/{factor}={quotient}"], str(quotient)

    def _difference(self, rng: random.Random, a: int, b: int, slip_frac: float) -> tuple[int, str]:
        value = off_by_one(rng, a - b, slip_frac)
        return value, f"{a}{-b:+d}={value}"

    def piece(self, rng: random.Random, slip_frac: float) -> str:
        draw, top = rng.random(), self._top
        if draw < 0.5:
            factor = rng.choice((-1, 1)) * rng.randint(1, 2 * top)
            value = rng.randint(-self._solution, self._solution)
            return f"{factor * value}/{factor}={off_by_one(rng, value, slip_frac)}"
        far = top if draw < 0.75 else 2 * top * self._solution
        return self._difference(rng, rng.randint(-far, far), rng.randint(-top, top), slip_frac)[1]

    def guess(self, rng: random.Random, problem: Problem) -> str:
        return str(rng.randint(-self._solution, self._solution))


def side(text: str) -> tuple[int, int]:
    """Of a side such as `-x+5`: what stands before x, and the number beside it."""
    found = _SIDE.fullmatch(text)
    assert found is not None, text
    before, number = found.groups()
    signs = {None: 0, "": 1, "+": 1, "-": -1}
    return signs[before] if before in signs else int(before), int(number or 0)
