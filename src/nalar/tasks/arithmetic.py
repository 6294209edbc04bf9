"""Arithmetic: `What is (12+7)*3?`, answered by an integer."""

import random

from nalar.sandbox import expression
from nalar.tasks.answers import can_be_read, number_score
from nalar.tasks.config import ArithmeticConfig
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score

LADDER: tuple[ArithmeticConfig, ...] = (
    ArithmeticConfig(max_terms=2, max_digits=1, operators="+-"),
    ArithmeticConfig(max_terms=2, max_digits=2, operators="+-"),
    ArithmeticConfig(max_terms=3, max_digits=2, operators="+-*"),
    ArithmeticConfig(min_terms=3, max_terms=4, max_digits=2, parentheses_frac=0.5),
    ArithmeticConfig(min_terms=3, max_terms=5, max_digits=3, parentheses_frac=0.5),
    ArithmeticConfig(min_terms=2, max_terms=3, min_digits=4, max_digits=6),
)
"""Rungs, from the easiest to the hardest; the last has numbers too large for the head."""


def expression_of(problem: Problem) -> str:
    """What a problem asks to be worked out."""
    return problem.prompt.removeprefix("What is ").removesuffix("?")


class Arithmetic(Family):
    """Expressions over numbers of one length or another, whose value is an integer.

    The key is the expression in its canonical form: `3+4` is held out where `4+3` is.
    """

    id = "arithmetic"

    def __init__(self, config: ArithmeticConfig | None = None) -> None:
        self.settings = config or ArithmeticConfig()
        super().__init__(self.settings)

    def make(self, rng: random.Random) -> Problem | None:
        config = self.settings
        count = rng.randint(config.min_terms, config.max_terms)
        parts = [self._number(rng)]
        for _ in range(count - 1):
            parts += [rng.choice(config.operators), self._number(rng)]
        plain = "".join(parts)
        text = plain
        if count > 2 and rng.random() < config.parentheses_frac:
            text = self._with_parentheses(rng, parts)
        try:
            parsed = expression.parse(text)
            value = expression.parse(plain).value if text != plain else None
        except expression.ExpressionError:  # it divides by zero
            return None
        if parsed.value.denominator != 1 or parsed.value == value:
            return None
        if not can_be_read(int(parsed.value)):
            return None
        return Problem(
            task=self.id,
            key=f"arithmetic:{parsed.canonical}",
            prompt=f"What is {text}?",
            data={"value": int(parsed.value)},
        )

    def _number(self, rng: random.Random) -> str:
        digits = rng.randint(self.settings.min_digits, self.settings.max_digits)
        return str(rng.randint(10 ** (digits - 1), 10**digits - 1))

    def _with_parentheses(self, rng: random.Random, parts: list[str]) -> str:
        """Around two numbers or more, but not around all."""
        count = len(parts) // 2 + 1
        size = rng.randint(2, count - 1)
        start = 2 * rng.randint(0, count - size)
        end = start + 2 * size - 1
        return "".join([*parts[:start], "(", *parts[start:end], ")", *parts[end:]])

    def gold(self, problem: Problem) -> str:
        return str(problem.data["value"])

    def score(self, problem: Problem, answer: str) -> Score:
        return number_score(answer, problem.data["value"])

    def guess(self, rng: random.Random, problem: Problem) -> str:
        return self.another_answer(rng)
