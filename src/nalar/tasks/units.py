"""Unit conversion: `Convert 2.5 km to m.`, answered by a number. Every ratio is exact."""

import random
from collections.abc import Mapping
from fractions import Fraction

from nalar.tasks.answers import number_score, plain_decimal
from nalar.tasks.config import UnitsConfig
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score

METRIC: Mapping[str, Mapping[str, Fraction]] = {
    "length": {
        "mm": Fraction(1, 1000),
        "cm": Fraction(1, 100),
        "m": Fraction(1),
        "km": Fraction(1000),
    },
    "mass": {
        "mg": Fraction(1, 1000),
        "g": Fraction(1),
        "kg": Fraction(1000),
        "t": Fraction(1_000_000),
    },
    "time": {
        "seconds": Fraction(1),
        "minutes": Fraction(60),
        "hours": Fraction(3600),
        "days": Fraction(86_400),
    },
    "volume": {"ml": Fraction(1, 1000), "dl": Fraction(1, 10), "l": Fraction(1)},
    "temperature": {"°C": Fraction(1), "K": Fraction(1), "°F": Fraction(5, 9)},
}
"""Size of each unit in the one that is 1."""
IMPERIAL: Mapping[str, Mapping[str, Fraction]] = {
    "length": {
        "inches": Fraction("0.0254"),
        "feet": Fraction("0.3048"),
        "yards": Fraction("0.9144"),
        "miles": Fraction("1609.344"),
    },
    "mass": {"ounces": Fraction("28.349523125"), "pounds": Fraction("453.59237")},
}
"""By the international yard and pound agreement of 1959."""
ZERO: Mapping[str, Fraction] = {"K": Fraction("-273.15"), "°F": Fraction(-160, 9)}
"""What 0 of a unit is in °C, where it is not 0."""


class Units(Family):
    """Values whose conversion ends after few decimals. The key holds the quantity itself, in whatever unit."""

    id = "units"

    def __init__(self, config: UnitsConfig | None = None) -> None:
        self.settings = config or UnitsConfig()
        super().__init__(self.settings)

    def make(self, rng: random.Random) -> Problem | None:
        config = self.settings
        quantity = rng.choice(config.chosen)
        units = dict(METRIC[quantity])
        if config.imperial:
            units |= IMPERIAL.get(quantity, {})
        given, wanted = rng.sample(list(units), 2)
        places = rng.randint(0, config.decimals)
        value = Fraction(rng.randint(1, config.max_value * 10**places), 10**places)
        base = value * units[given] + ZERO.get(given, 0)
        result = (base - ZERO.get(wanted, 0)) / units[wanted]
        if not _ends_soon(result):
            return None
        return Problem(
            task=self.id,
            key=f"units:{quantity} {base}|{given} {wanted}",
            prompt=f"Convert {plain_decimal(value)} {given} to {wanted}.",
            data={"value": str(result), "shown": str(value)},
        )

    def gold(self, problem: Problem) -> str:
        return plain_decimal(Fraction(problem.data["value"]))

    def score(self, problem: Problem, answer: str) -> Score:
        """The number alone, without its unit; a decimal or a fraction in lowest terms."""
        return number_score(answer, Fraction(problem.data["value"]))

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """The number shown, its point moved."""
        return plain_decimal(Fraction(problem.data["shown"]) * Fraction(10) ** rng.randint(-6, 6))


def _ends_soon(value: Fraction) -> bool:
    return (value * 10**9).denominator == 1
