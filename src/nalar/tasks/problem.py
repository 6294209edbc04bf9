"""What a task is: problems as text, answers as text, a score. No model, no tensors."""

import hashlib
import random
from collections.abc import Iterator, Mapping
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


@dataclass(frozen=True)
class Score:
    """The verdict on one answer. `error` is set where the verifier failed: never counted as wrong in silence."""

    correct: bool
    well_formed: bool
    canonical: str | None = None
    """The answer in a form on which votes are counted; None is no vote."""
    error: str | None = None


class Task(Protocol):
    """A family of problems with an exact verifier."""

    @property
    def id(self) -> str: ...

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


SALT = b"nalar-2/"
"""Changed once, when the demo's recipe was fixed: its test problems had not been read before (LOG.md)."""


def split_of(key: str) -> Split:
    """Where a key belongs, by hash alone: 80% train, 8% valid, 12% test."""
    bucket = int.from_bytes(hashlib.sha256(SALT + key.encode()).digest()[:4], "big") % 100
    return "test" if bucket < 12 else "valid" if bucket < 20 else "train"
