"""Sorting: `Sort from small to large: 31 4 15`, or made-up words by the alphabet."""

import random

from nalar.tasks.answers import words_score
from nalar.tasks.config import SortingConfig
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Sorting(Family):
    """Numbers or words in a random order, none twice. The key holds what is sorted, whatever its order."""

    id = "sorting"

    def __init__(self, config: SortingConfig | None = None) -> None:
        self.settings = config or SortingConfig()
        super().__init__(self.settings)

    def make(self, rng: random.Random) -> Problem | None:
        count = rng.randint(self.settings.min_items, self.settings.max_items)
        items = [self._item(rng) for _ in range(count)]
        if len(set(items)) < count:
            return None
        by = int if self.settings.items == "numbers" else str
        ordered = sorted(items, key=by)
        goes_up = rng.random() < 0.5
        if self.settings.items == "numbers":
            how = "from small to large" if goes_up else "from large to small"
        else:
            how = "from A to Z" if goes_up else "from Z to A"
        gold = ordered if goes_up else ordered[::-1]
        return Problem(
            task=self.id,
            key=f"sorting:{' '.join(ordered)}|{how}",
            prompt=f"Sort {how}: {' '.join(items)}",
            data={"sorted": gold, "items": items},
        )

    def _item(self, rng: random.Random) -> str:
        if self.settings.items == "numbers":
            return str(rng.randint(0, self.settings.max_number))
        return "".join(rng.choices(_LETTERS, k=rng.randint(2, self.settings.max_letters)))

    def gold(self, problem: Problem) -> str:
        return " ".join(problem.data["sorted"])

    def score(self, problem: Problem, answer: str) -> Score:
        """Well-formed: as many words as there are items, with spaces or commas between them."""
        return words_score(answer, problem.data["sorted"])

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """The items in a random order."""
        return " ".join(rng.sample(problem.data["items"], len(problem.data["items"])))
