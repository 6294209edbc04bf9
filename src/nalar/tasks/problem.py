"""What a task is: problems as text, answers as text, a score. No model, no tensors."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Problem:
    """One problem. `prompt` is all the model sees; `data` is what the verifier needs, JSON-able."""

    task: str
    key: str
    """Identity for splitting and de-duplication: equal keys are the same problem."""
    prompt: str
    data: Mapping[str, Any] = field(default_factory=dict)
    level: str | None = None
    """Which level of its task it was drawn from; None where the task has one level."""


@dataclass(frozen=True)
class Score:
    """The verdict on one answer. `error` is set where the verifier failed: never counted as wrong in silence."""

    correct: bool
    well_formed: bool
    canonical: str | None = None
    """The answer in a form on which votes are counted; None is no vote."""
    error: str | None = None
    timed_out: bool = False
    """Whether a limit of time was hit: with `error` by the verifier, without it by the program that was the answer."""


class Task(Protocol):
    """A family of problems with an exact verifier."""

    @property
    def id(self) -> str: ...

    @property
    def searches(self) -> bool:
        """Whether its thoughts are tries at arithmetic, each marked as hit or miss (`traces.py` reads them)."""
        ...

    @property
    def is_checkable(self) -> bool:
        """Whether an answer is easier to check than to find, so that guessing and checking is a way to solve it."""
        ...

    @property
    def is_costly(self) -> bool:
        """Whether a score takes milliseconds, so that baselines try less."""
        ...

    def draw(self, rng: random.Random, split: Split) -> Problem:
        """One random problem of a split (problems may repeat between draws)."""
        ...

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """Up to n distinct problems of a split, the same for the same seed; fewer where the split has fewer."""
        ...

    def gold(self, problem: Problem) -> str:
        """An answer that scores correct."""
        ...

    def score(self, problem: Problem, answer: str) -> Score:
        """Check an answer. Any text is legal input; never raises, never evaluates the text as code."""
        ...

    def constants(self) -> Iterator[str]:
        """Answers worth trying for every problem: the best of them is the constant baseline."""
        ...

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """An answer of the right form by someone who read the problem and did not solve it."""
        ...


MAX_ERROR_CHARS = 300


def scored(task: Task, problem: Problem, answer: str) -> Score:
    """What the task's verifier says. One that raises has a fault, which is no verdict on the answer and no reason to
    end a run: it is an error of the verifier, counted and shown as that of a user's own task is."""
    try:
        return task.score(problem, answer)
    except Exception as error:
        told = f"{type(task).__name__}.score raised {type(error).__name__}: {error}"
        return Score(correct=False, well_formed=False, error=told[:MAX_ERROR_CHARS])


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8, as keys and prompts must be: JSON may hold half a surrogate pair."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


SALT = b"nalar-2/"
"""Changed once, when the demo's recipe was fixed: its test problems had not been read before (LOG.md)."""


def split_of(key: str) -> Split:
    """Where a key belongs, by hash alone: 80% train, 8% valid, 12% test."""
    bucket = int.from_bytes(hashlib.sha256(SALT + key.encode()).digest()[:4], "big") % 100
    return "test" if bucket < 12 else "valid" if bucket < 20 else "train"


_DRAWS_EACH = 20
_IDLE_DRAWS = 10_000


def distinct(draw: Callable[[], Problem], n: int) -> list[Problem]:
    """Up to n problems of different keys, in the order drawn; fewer where draws bring nothing new any more.

    Whatever n is, this ends: after 20 draws for each problem asked for, or 10,000 in a row without a new one.
    """
    found: dict[str, Problem] = {}
    idle = 0
    for _ in range(_DRAWS_EACH * n):
        problem = draw()
        idle = idle + 1 if problem.key in found else 0
        found.setdefault(problem.key, problem)
        if len(found) == n or idle == _IDLE_DRAWS:
            break
    return list(found.values())
