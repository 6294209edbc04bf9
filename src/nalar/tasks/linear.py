"""Linear equations: `Solve 3x+5=2x-4 for x.`, or two or three equations in as many unknowns."""

import random
from collections.abc import Sequence
from fractions import Fraction
from math import gcd

from nalar.tasks.answers import numbers_score
from nalar.tasks.config import LinearConfig
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score

NAMES = ("x", "y", "z")


class Linear(Family):
    """Equations with exactly one solution.

    The key holds each equation as its coefficients in lowest terms, in order: neither sides that are swapped, nor
    order, nor a common factor make another problem.
    """

    id = "linear"
    is_checkable = True

    def __init__(self, config: LinearConfig | None = None) -> None:
        self.settings = config or LinearConfig()
        super().__init__(self.settings)

    def make(self, rng: random.Random) -> Problem | None:
        made = self._one(rng) if self.settings.unknowns == 1 else self._several(rng)
        if made is None:
            return None
        equations, rows, solution = made
        names = NAMES[: len(solution)]
        key = ";".join(sorted(" ".join(map(str, lowest_terms(row))) for row in rows))
        return Problem(
            task=self.id,
            key=f"linear:{key}",
            prompt=f"Solve {', '.join(equations)} for {', '.join(names)}.",
            data={"solution": [str(value) for value in solution]},
        )

    def _one(self, rng: random.Random) -> tuple[list[str], list[list[int]], list[Fraction]] | None:
        """The solution is drawn first, so that no value is more frequent than the others."""
        config, top = self.settings, self.settings.max_coefficient
        below = rng.randint(1, config.max_denominator)
        solution = Fraction(rng.randint(-config.max_solution, config.max_solution), below)
        a, b, c = (rng.randint(-top, top) for _ in range(3))
        d = (a - c) * solution + b
        if a == c or d.denominator != 1:
            return None
        sides = [a, b, c, int(d)], [c, int(d), a, b]
        text = f"{_side([a], b)}={_side([c], int(d))}"
        return [text], [min(map(lowest_terms, sides))], [solution]

    def _several(
        self, rng: random.Random
    ) -> tuple[list[str], list[list[int]], list[Fraction]] | None:
        count, top = self.settings.unknowns, self.settings.max_coefficient
        solution = [
            rng.randint(-self.settings.max_solution, self.settings.max_solution)
            for _ in range(count)
        ]
        rows = []
        for _ in range(count):
            row = [rng.randint(-top, top) for _ in range(count)]
            rows.append([*row, sum(c * v for c, v in zip(row, solution, strict=True))])
        if determinant([row[:-1] for row in rows]) == 0:
            return None
        texts = [f"{_side(row[:-1], 0)}={row[-1]}" for row in rows]
        return texts, rows, [Fraction(value) for value in solution]

    def gold(self, problem: Problem) -> str:
        return ", ".join(problem.data["solution"])

    def score(self, problem: Problem, answer: str) -> Score:
        """Values in the order of the unknowns, such as `2, -3` or `x=2, y=-3`."""
        gold = [Fraction(value) for value in problem.data["solution"]]
        return numbers_score(answer, gold, NAMES[: len(gold)])

    def guess(self, rng: random.Random, problem: Problem) -> str:
        return self.another_answer(rng)


def lowest_terms(row: Sequence[int]) -> list[int]:
    """The same equation with no common factor, its first coefficient positive."""
    factor = gcd(*row) or 1
    first = next((value for value in row if value), 1)
    return [value // (factor if first > 0 else -factor) for value in row]


def determinant(matrix: Sequence[Sequence[int]]) -> int:
    """By the first row; for the two or three unknowns there are."""
    if len(matrix) == 1:
        return matrix[0][0]
    return sum(
        (-1) ** i * value * determinant([[*row[:i], *row[i + 1 :]] for row in matrix[1:]])
        for i, value in enumerate(matrix[0])
    )


def _side(coefficients: Sequence[int], constant: int) -> str:
    """Such as `3x-y` or `-2x+5`; `0` where nothing is left."""
    terms = [
        f"{'-' if c < 0 else '+'}{abs(c) if abs(c) != 1 else ''}{name}"
        for c, name in zip(coefficients, NAMES, strict=False)
        if c
    ]
    if constant:
        terms.append(f"{constant:+d}")
    return "".join(terms).removeprefix("+") or "0"
