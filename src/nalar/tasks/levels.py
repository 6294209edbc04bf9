"""A task at several levels of difficulty: one family in several settings, easiest first."""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from nalar.config import ConfigError
from nalar.tasks.problem import Problem, Score, Split, Task, distinct

MAX_LEVELS = 50


class Leveled:
    """Tasks of one id, by the name of their level. Drawn from evenly; a problem is scored by the level it is of.

    What one level holds out no other trains on: levels are settings of one family, whose keys say which split.
    """

    def __init__(self, levels: Mapping[str, Task]) -> None:
        if len(levels) < 2 or len({task.id for task in levels.values()}) > 1:
            raise ConfigError(
                at="levels",
                got=", ".join(f"{name} of {task.id}" for name, task in levels.items()) or "none",
                want="two levels of one task at least",
            )
        self.levels = dict(levels)
        first = next(iter(levels.values()))
        self.id, self.searches, self.is_checkable = first.id, first.searches, first.is_checkable
        self.is_costly = first.is_costly

    def draw_at(self, level: str, rng: random.Random, split: Split) -> Problem:
        return replace(self.levels[level].draw(rng, split), level=level)

    def draw(self, rng: random.Random, split: Split) -> Problem:
        return self.draw_at(rng.choice(list(self.levels)), rng, split)

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """The levels in turn; a problem of two levels once, at the first of them."""
        rngs = {name: random.Random(f"{self.id} {name} {split} {seed}") for name in self.levels}
        turns = itertools.cycle(self.levels)

        def draw() -> Problem:
            level = next(turns)
            return self.draw_at(level, rngs[level], split)

        return distinct(draw, n)

    def gold(self, problem: Problem) -> str:
        return self._of(problem).gold(problem)

    def score(self, problem: Problem, answer: str) -> Score:
        return self._of(problem).score(problem, answer)

    def constants(self) -> Iterator[str]:
        """Those of each level in turn."""
        rounds = itertools.zip_longest(*(task.constants() for task in self.levels.values()))
        yield from dict.fromkeys(answer for each in rounds for answer in each if answer is not None)

    def guess(self, rng: random.Random, problem: Problem) -> str:
        return self._of(problem).guess(rng, problem)

    def _of(self, problem: Problem) -> Task:
        if problem.level not in self.levels:
            raise ValueError(f"{self.id} has levels {list(self.levels)}, not {problem.level!r}")
        return self.levels[problem.level]


def spread(settings: Mapping[str, str], *, at: str) -> dict[str, dict[str, str]]:
    """Settings of each level by its name, where values such as `3..6` name several; one level where none does.

    Several such values are gone through side by side: `min_digits=1..3,max_digits=2..4` are three levels.
    """
    ranges = {name: found for name, value in settings.items() if (found := _range(name, value, at))}
    if not ranges:
        return {"": dict(settings)}
    lengths = {name: len(values) for name, values in ranges.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(
            at=at,
            got=", ".join(
                f"{settings[name]} ({n} levels) of {name}" for name, n in lengths.items()
            ),
            want="as many levels of each setting",
        )
    rows = zip(*ranges.values(), strict=True)
    chosen = [dict(zip(ranges, map(str, row), strict=True)) for row in rows]
    return {
        ",".join(f"{name}={value}" for name, value in row.items()): {**settings, **row}
        for row in chosen
    }


def _range(name: str, value: str, at: str) -> range | None:
    first, sign, last = value.partition("..")
    if not (sign and _is_integer(first) and _is_integer(last)):
        return None
    found = range(int(first), int(last) + 1)
    if not 2 <= len(found) <= MAX_LEVELS:
        raise ConfigError(
            at=at, got=f"{name}={value}", want=f"2 to {MAX_LEVELS} levels, the lowest first"
        )
    return found


def _is_integer(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdigit() and len(text) < 12


def leveled(
    make: Callable[[Mapping[str, str]], Task], rows: Mapping[str, Mapping[str, str]]
) -> Task:
    """A task of one level as `make` makes it, or one of several."""
    made = {name: make(row) for name, row in rows.items()}
    return Leveled(made) if len(made) > 1 else next(iter(made.values()))
