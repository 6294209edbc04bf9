"""Countdown: reach a target with every given number used exactly once. Also the blind searcher over it."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from nalar.config import ConfigError
from nalar.sandbox import expression
from nalar.tasks.config import CountdownConfig
from nalar.tasks.problem import Problem, Score, Split, distinct, split_of

Numbers = tuple[int, ...]
"""A multiset of numbers, sorted."""

_MAX_ENUMERATED = 3
_MAX_SETS = 20_000
"""Sets of numbers that are gone through before the first problem: about two seconds."""
_MAX_LISTED = 5
"""From six numbers on, one problem has hundreds of thousands of tries."""
_ATTEMPTS = 2000
_DRAWS = 1000
_NUM_CONSTANTS = 300


class Try(NamedTuple):
    """One way to combine all numbers."""

    steps: str
    """Such as `8-3=5,5*9=45`."""
    value: int
    expression: str
    """The same as one expression, every step but the last in parentheses: `(8-3)*9`."""


class _Item(NamedTuple):
    """A number still to be used: given, or the result of a step."""

    value: int
    text: str
    is_result: bool


@dataclass(frozen=True)
class _Table:
    """Everything there is to know of a small configuration."""

    tries: dict[Numbers, tuple[Try, ...]]
    problems: dict[Split, list[tuple[Numbers, int]]]


def split_of_numbers(numbers: Sequence[int]) -> Split:
    """Where a set of numbers belongs, whatever the target: so no try over held-out numbers is ever taught."""
    return split_of("countdown:" + " ".join(map(str, sorted(numbers))))


def _step(x: _Item, y: _Item, operator: str, limit: int) -> tuple[str, _Item] | None:
    """Join two items. The larger goes first, but in a sum or product a result goes before a given number."""
    if operator in "+*" and x.is_result != y.is_result:
        a, b = (x, y) if x.is_result else (y, x)
    else:
        a, b = (x, y) if x.value >= y.value else (y, x)
    if operator == "/":
        value = a.value // b.value if a.value % b.value == 0 else 0
    elif operator == "*":
        value = a.value * b.value
    else:
        value = a.value + b.value if operator == "+" else a.value - b.value
    if not 1 <= value <= limit:
        return None
    return f"{a.value}{operator}{b.value}={value}", _Item(
        value, f"({a.text}{operator}{b.text})", True
    )


def _enumerate(
    pool: tuple[_Item, ...], steps: tuple[str, ...], config: CountdownConfig
) -> Iterator[Try]:
    """Every way to go on from a pool of items."""
    if len(pool) == 1:
        yield Try(",".join(steps), pool[0].value, pool[0].text[1:-1])
        return
    for i, j in itertools.combinations(range(len(pool)), 2):
        rest = tuple(item for k, item in enumerate(pool) if k not in (i, j))
        for operator in config.operators:
            joined = _step(pool[i], pool[j], operator, config.max_intermediate)
            if joined is not None:
                yield from _enumerate((*rest, joined[1]), (*steps, joined[0]), config)


def _given(numbers: Sequence[int]) -> tuple[_Item, ...]:
    return tuple(_Item(n, str(n), False) for n in numbers)


@lru_cache(maxsize=16)
def _table(config: CountdownConfig) -> _Table:
    table = _Table({}, {"train": [], "valid": [], "test": []})
    for numbers in itertools.combinations_with_replacement(
        range(1, config.max_number + 1), config.num_numbers
    ):
        tries = tuple({t.steps: t for t in _enumerate(_given(numbers), (), config)}.values())
        table.tries[numbers] = tries
        targets = sorted({t.value for t in tries} - {sum(numbers)})
        table.problems[split_of_numbers(numbers)] += [(numbers, target) for target in targets]
    return table


class Countdown:
    """Problems such as `make 20 from 10 5 2`, answered by an expression such as `(5*2)+10`.

    Numbers are 1..max_number, all results on the way 1..max_intermediate. Targets that equal the plain sum are left
    out: they would make adding everything up a shortcut.
    """

    id = "countdown"
    searches = True
    is_checkable = True
    is_costly = False

    def __init__(self, config: CountdownConfig | None = None) -> None:
        self.config = config or CountdownConfig()
        count, top = self.config.num_numbers, self.config.max_number
        sets = math.comb(top + count - 1, count)
        is_small = count <= _MAX_ENUMERATED and sets <= _MAX_SETS
        self.is_enumerated = is_small and len(self.config.counts) == 1
        """Whether problems and tries come from a table of all there are."""
        self._table = _table(self.config) if self.is_enumerated else _Table({}, {})
        splits = self._table.problems.values()
        if not (all(splits) if self.is_enumerated else self._has_numbers_in_every_split()):
            raise self._no_problems()

    def draw(self, rng: random.Random, split: Split) -> Problem:
        """Uniform over the distinct (numbers, target) of the split, numbers in random order.

        Where there is no table (`is_enumerated`), as from four numbers on: uniform numbers of the split, then the
        value of one random try over them.
        """
        if self.is_enumerated:
            problems = self._table.problems[split]
            numbers, target = problems[int(rng.random() * len(problems))]
            return self._problem(rng, numbers, target)
        for _ in range(_DRAWS):
            numbers = self.draw_numbers(rng, split)
            found = self._walk(rng, numbers)
            if found is not None and found.value != sum(numbers):
                return self._problem(rng, numbers, found.value)
        raise self._no_problems()

    def draw_numbers(self, rng: random.Random, split: Split) -> Numbers:
        """The sorted numbers of a random problem of the split, each drawn from 1..max_number."""
        top, counts = self.config.max_number, self.config.counts
        count = counts[0] if len(counts) == 1 else rng.choice(counts)
        while True:
            numbers = tuple(sorted(1 + int(rng.random() * top) for _ in range(count)))
            if split_of_numbers(numbers) == split:
                return numbers

    def _has_numbers_in_every_split(self) -> bool:
        """Stops at the first of each, so that only a small range is gone through."""
        return all(map(self._has_every_split, self.config.counts))

    def _has_every_split(self, count: int) -> bool:
        missing: set[Split] = {"train", "valid", "test"}
        for numbers in itertools.combinations_with_replacement(
            range(1, self.config.max_number + 1), count
        ):
            missing.discard(split_of_numbers(numbers))
            if not missing:
                return True
        return False

    def _no_problems(self) -> ConfigError:
        return ConfigError(
            at="countdown",
            got=str(self.config),
            want="a configuration with problems in every split",
            hint="a larger max_number or max_intermediate, more operators",
        )

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """Up to n distinct problems; fewer than n are the first of them."""
        rng = random.Random(f"countdown {split} {seed}")
        if self.is_enumerated:
            chosen = list(self._table.problems[split])
            rng.shuffle(chosen)
            return [self._problem(rng, numbers, target) for numbers, target in chosen[:n]]
        return distinct(lambda: self.draw(rng, split), n)

    def gold(self, problem: Problem) -> str:
        numbers, target = tuple(sorted(problem.data["numbers"])), problem.data["target"]
        return next(t.expression for t in self._all_tries(numbers) if t.value == target)

    def score(self, problem: Problem, answer: str) -> Score:
        """Well-formed: an expression, whatever its numbers. Correct: each number once, and the target."""
        try:
            parsed = expression.parse(answer.strip())
        except expression.ExpressionError:
            return Score(correct=False, well_formed=False)
        uses_all = sorted(parsed.numbers) == sorted(problem.data["numbers"])
        correct = uses_all and parsed.value == problem.data["target"]
        return Score(correct=correct, well_formed=True, canonical=parsed.canonical)

    def constants(self) -> Iterator[str]:
        """Answers to train problems. An expression names its numbers, so each can solve one problem at most."""
        for problem in self.problems("train", _NUM_CONSTANTS, seed=0):
            yield self.gold(problem)

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """One blind try over the problem's numbers."""
        return self.random_try(rng, problem.data["numbers"]).expression

    @property
    def can_list_tries(self) -> bool:
        """Whether the tries over one problem's numbers are few enough to hold."""
        return self.config.num_numbers <= _MAX_LISTED

    def tries(self, numbers: Sequence[int]) -> tuple[Try, ...]:
        """All distinct valid tries over up to five numbers; ConfigError above (`random_try` takes any)."""
        key = tuple(sorted(numbers))
        if key in self._table.tries:
            return self._table.tries[key]
        if len(key) > _MAX_LISTED:
            raise ConfigError(
                at="countdown.num_numbers",
                got=f"{len(key)} numbers",
                want=f"at most {_MAX_LISTED}, where all tries are listed",
            )
        return tuple({t.steps: t for t in _enumerate(_given(key), (), self.config)}.values())

    def random_try(self, rng: random.Random, numbers: Sequence[int]) -> Try:
        """One blind try over the numbers, whatever the target.

        With a table (`is_enumerated`): uniform over the distinct valid tries, where a try is which pair is joined
        first, by which operator, and by which operator the rest; operand order is not a choice. Without: at each
        step a uniform pair and a uniform operator, begun anew where a result is invalid.
        """
        if self.is_enumerated:
            tries = self.tries(numbers)
            if tries:
                return tries[int(rng.random() * len(tries))]
        else:
            found = self._walk(rng, numbers)
            if found is not None:
                return found
        raise ConfigError(
            at="countdown",
            got=f"numbers {list(numbers)}",
            want="numbers that combine within max_intermediate",
        )

    def _all_tries(self, numbers: Numbers) -> Iterator[Try]:
        return iter(self._table.tries.get(numbers) or _enumerate(_given(numbers), (), self.config))

    def _walk(self, rng: random.Random, numbers: Sequence[int]) -> Try | None:
        """A random sequence of steps; None where none was valid in many attempts."""
        operators, limit = self.config.operators, self.config.max_intermediate
        for _ in range(_ATTEMPTS):
            pool, steps = list(_given(numbers)), []
            while len(pool) > 1:
                x = pool.pop(int(rng.random() * len(pool)))
                y = pool.pop(int(rng.random() * len(pool)))
                joined = _step(x, y, operators[int(rng.random() * len(operators))], limit)
                if joined is None:
                    break
                steps.append(joined[0])
                pool.append(joined[1])
            else:
                return Try(",".join(steps), pool[0].value, pool[0].text[1:-1])
        return None

    def _problem(self, rng: random.Random, numbers: Numbers, target: int) -> Problem:
        shown = list(numbers)
        rng.shuffle(shown)
        return Problem(
            task=self.id,
            key=f"countdown:{' '.join(map(str, numbers))}={target}",
            prompt=f"make {target} from {' '.join(map(str, shown))}",
            data={"numbers": shown, "target": target},
        )
