"""Tasks that can say how good any answer is, and give answers of every quality. Imports no torch."""

import random
from dataclasses import dataclass
from typing import Protocol

from nalar.tasks.problem import Problem


@dataclass(frozen=True)
class Variant:
    """An answer that somebody could give."""

    text: str
    quality: float
    """From 0 (bad) to 1 (what one would want): the truth that a preference model is to learn."""
    flaw: str | None
    """The name of what is wrong with it. None: nothing."""


class Rated(Protocol):
    """A task that can also rate."""

    def variants(self, rng: random.Random, problem: Problem) -> list[Variant]:
        """Good and bad answers, three at least, shuffled by rng."""
        ...

    def quality(self, problem: Problem, answer: str) -> float:
        """Of any text: 1 for a gold answer. Never raises."""
        ...
