"""What families of drawn problems share: a draw that keeps to its split, and lists of distinct problems."""

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator

from nalar.config import Config, ConfigError
from nalar.tasks.problem import Problem, Score, Split, distinct, split_of

_DRAWS = 20_000
"""A split holds 8% of the problems at least: so many draws without one mean that there is none."""
_CONSTANTS_FROM = 300


def split_of_key(key: str) -> Split:
    """By what stands before a `|` in the key: what is held out is held out in every form."""
    return split_of(key.partition("|")[0])


class Family(ABC):
    """Problems drawn at random, each in the split that the hash of its key gives it."""

    id: str
    searches = False
    is_checkable = False
    is_costly = False

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def make(self, rng: random.Random) -> Problem | None:
        """One random problem, whatever its split; None where the numbers drawn make none."""

    @abstractmethod
    def gold(self, problem: Problem) -> str:
        """An answer that scores correct."""

    @abstractmethod
    def score(self, problem: Problem, answer: str) -> Score:
        """Check an answer. Any text is legal input; never raises, never evaluates the text as code."""

    @abstractmethod
    def guess(self, rng: random.Random, problem: Problem) -> str:
        """An answer of the right form by someone who read the problem and did not solve it."""

    def draw(self, rng: random.Random, split: Split) -> Problem:
        """One random problem of a split; ConfigError where the settings leave it none."""
        for _ in range(_DRAWS):
            problem = self.make(rng)
            if problem is not None and split_of_key(problem.key) == split:
                return problem
        raise ConfigError(
            at=self.id,
            got=str(self.config),
            want=f"settings with problems in every split: {split} has none",
            hint="larger ranges",
        )

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """Up to n distinct problems of a split, the same for the same seed; fewer where the split has fewer."""
        rng = random.Random(f"{self.id} {split} {seed}")
        return distinct(lambda: self.draw(rng, split), n)

    def constants(self) -> Iterator[str]:
        """The answers of train problems, the most frequent first."""
        counts = Counter(self.gold(p) for p in self.problems("train", _CONSTANTS_FROM, seed=0))
        yield from (answer for answer, _ in counts.most_common())

    def another_answer(self, rng: random.Random) -> str:
        """The answer of some train problem: a guess that knows how often each answer occurs."""
        return self.gold(self.draw(rng, "train"))
