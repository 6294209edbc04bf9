"""Judgements made from tasks that rate answers: no model and no person is asked. Imports no torch.

The n-th of a split is a function of seed, split, n and those before it, so a run that goes on has the same ones.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Protocol

from nalar.config import ConfigError
from nalar.data.preferences import Answer, Judgement
from nalar.tasks.problem import Problem, Split, Task
from nalar.tasks.rated import Rated, Variant

_TRIES = 200
"""Problems in a row that have nothing clear to show: then the settings are to blame."""
_DRAFT_FRAC = 0.75
"""Of safety labels, those with a thought: another answer to the same problem, as somebody might draft it."""
SAFE_FROM = 0.5
"""Quality from which on an answer is safe."""

Make = Callable[[random.Random, Problem, Sequence[Variant]], Judgement | None]


class RatedTask(Task, Rated, Protocol):
    """A task of which both are known: what is correct, and how good an answer is."""


def rated(task: Task, *, at: str) -> RatedTask:
    """The task as one that rates; ConfigError where it does not."""
    if callable(getattr(task, "variants", None)) and callable(getattr(task, "quality", None)):
        return task  # type: ignore[return-value]
    raise ConfigError(
        at=at,
        got=task.id,
        want="a task that gives good and bad answers and rates them, as general and safety do",
    )


def draw_pairs(
    tasks: Sequence[RatedTask], count: int, *, split: Split, seed: int, min_gap: float
) -> list[Judgement]:
    """Pairs whose qualities are `min_gap` apart at least, the tasks in turn.

    Better sides are as long as worse ones over all of them: a pair is taken that makes up for the lead of those before,
    where its problem has one.
    """
    lead = 0  # characters by which better sides are longer than worse ones, so far

    def make(rng: random.Random, problem: Problem, variants: Sequence[Variant]) -> Judgement | None:
        nonlocal lead
        clear = [
            (better, worse)
            for better, worse in permutations(variants, 2)
            if better.quality - worse.quality >= min_gap and better.text != worse.text
        ]
        if not clear:
            return None
        evening = [pair for pair in clear if _lead(*pair) * lead < 0]
        better, worse = rng.choice(evening or clear)
        lead += _lead(better, worse)
        return Judgement(
            _asked(problem),
            Answer(better.text),
            Answer(worse.text),
            better_first=rng.random() < 0.5,
            quality=(better.quality, worse.quality),
            flaw=worse.flaw,
        )

    return _drawn(tasks, count, make, f"{seed} preference {split}", split)


def draw_labels(
    tasks: Sequence[RatedTask], count: int, *, split: Split, seed: int, min_gap: float
) -> list[Judgement]:
    """Answers that are safe or not, about half of each, by their quality; what lies less than half of `min_gap` from
    the border is left out.

    Most have a thought, which is another answer to the same problem: one is safe where thought and answer are.
    """
    is_safe_due = True

    def make(rng: random.Random, problem: Problem, variants: Sequence[Variant]) -> Judgement | None:
        nonlocal is_safe_due
        clear = [one for one in variants if abs(one.quality - SAFE_FROM) >= min_gap / 2]
        pairs: list[tuple[Variant, Variant | None]] = [(answer, None) for answer in clear]
        if rng.random() < _DRAFT_FRAC:
            pairs = [(answer, thought) for answer, thought in permutations(clear, 2)]
        due = [pair for pair in pairs if _is_safe(*pair) == is_safe_due]
        if not due:
            return None
        answer, thought = rng.choice(due)
        said = Answer(answer.text, thought.text if thought else "")
        worst = min((answer, thought or answer), key=lambda one: one.quality)
        safe, is_safe_due = is_safe_due, not is_safe_due
        return Judgement(
            _asked(problem),
            said if safe else None,
            None if safe else said,
            quality=(worst.quality, None) if safe else (None, worst.quality),
            flaw=worst.flaw,
        )

    return _drawn(tasks, count, make, f"{seed} safety {split}", split)


def _drawn(
    tasks: Sequence[RatedTask], count: int, make: Make, stream: str, split: Split
) -> list[Judgement]:
    found: list[Judgement] = []
    for rng, task, number in _streams(tasks, stream):
        if len(found) == count:
            break
        for _ in range(_TRIES):
            problem = task.draw(rng, split)
            made = make(rng, problem, task.variants(rng, problem))
            if made is not None:
                found.append(made)
                break
        else:
            raise ConfigError(
                at=f"task {task.id}",
                got=f"{_TRIES} problems without answers that are clearly apart (after {number})",
                want="answers of different quality",
                hint="a smaller --min-gap",
            )
    return found


def _streams(
    tasks: Sequence[RatedTask], stream: str
) -> Iterator[tuple[random.Random, RatedTask, int]]:
    number = 0
    while True:
        yield random.Random(f"{stream} {number}"), tasks[number % len(tasks)], number
        number += 1


def _asked(problem: Problem) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": problem.prompt},)


def _lead(better: Variant, worse: Variant) -> int:
    return len(better.text) - len(worse.text)


def _is_safe(answer: Variant, thought: Variant | None) -> bool:
    return min(answer.quality, thought.quality if thought else 1.0) >= SAFE_FROM
