"""Tasks whose answers are more or less good, so that there is something to prefer. Imports no torch."""

import random
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nalar.tasks.problem import Problem


@dataclass(frozen=True)
class Variant:
    """An answer somebody could give."""

    text: str
    quality: float
    """From 0 (bad) to 1 (what one would want): the truth that a preference model should learn."""
    flaw: str | None
    """Name of what is wrong with it; None: nothing."""


@runtime_checkable
class Rated(Protocol):
    """What a task has beside its verdict, if answers to it are better or worse. `isinstance` tells."""

    def variants(self, rng: random.Random, problem: Problem) -> list[Variant]:
        """Good and bad answers, three at least, shuffled by `rng`. Good ones score correct, the others do not."""
        ...

    def quality(self, problem: Problem, answer: str) -> float:
        """Of any text, from 0 to 1; 1 for the gold answer and for what scores correct alone. Never raises."""
        ...
