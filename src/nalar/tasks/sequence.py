"""Number sequences: `Which number comes next? 2, 5, 8, 11, 14, 17`."""

import random
from collections.abc import Sequence
from itertools import pairwise

from nalar.tasks.answers import can_be_read, number_score
from nalar.tasks.config import SequenceConfig
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score


def continuations(terms: Sequence[int]) -> dict[str, int]:
    """What comes next by every rule that all the terms follow; at least six terms."""
    found = {}
    steps = [b - a for a, b in pairwise(terms)]
    growths = {b - a for a, b in pairwise(steps)}
    if len(set(steps)) == 1:
        found["step"] = terms[-1] + steps[-1]
    if len(growths) == 1:
        found["growing"] = terms[-1] + steps[-1] + growths.pop()
    first, second = terms[:2]
    if first and second % first == 0:
        ratio = second // first
        if all(b == a * ratio for a, b in pairwise(terms)):
            found["ratio"] = terms[-1] * ratio
    if all(c == a + b for a, b, c in zip(terms, terms[1:], terms[2:], strict=False)):
        found["sum"] = terms[-2] + terms[-1]
    first_part, second_part = (
        {b - a for a, b in pairwise(part)} for part in (terms[::2], terms[1::2])
    )
    if len(first_part) == len(second_part) == 1:
        found["turns"] = terms[-2] + (second_part if len(terms) % 2 else first_part).pop()
    return found


class NumberSequence(Family):
    """The next term of a sequence. Whichever of the rules one sees in what is shown, the next number is the same."""

    id = "sequence"

    def __init__(self, config: SequenceConfig | None = None) -> None:
        self.settings = config or SequenceConfig()
        super().__init__(self.settings)

    def make(self, rng: random.Random) -> Problem | None:
        rule = rng.choice(self.settings.chosen)
        terms = self._terms(rng, rule)
        following = continuations(terms)
        if set(following.values()) != {following.get(rule)}:
            return None  # zeros; of these rules no two go on otherwise after six terms, and a test holds them to it
        if not can_be_read(following[rule]):
            return None
        shown = ", ".join(map(str, terms))
        return Problem(
            task=self.id,
            key=f"sequence:{shown}",
            prompt=f"Which number comes next? {shown}",
            data={"next": following[rule]},
        )

    def _terms(self, rng: random.Random, rule: str) -> list[int]:
        top, step = self.settings.max_start, self.settings.max_step
        a, b = rng.randint(-top, top), rng.randint(-top, top)
        d, e = rng.randint(-step, step), rng.randint(-step, step)
        count = self.settings.num_shown
        if rule == "ratio":
            ratio = rng.randint(2, max(2, step))
            return [a * ratio**i for i in range(count)]
        if rule == "growing":
            return [a + d * i + e * i * (i - 1) // 2 for i in range(count)]
        if rule == "turns":
            return [(a + d * (i // 2)) if i % 2 == 0 else (b + e * (i // 2)) for i in range(count)]
        if rule == "sum":
            terms = [a, b]
            while len(terms) < count:
                terms.append(terms[-2] + terms[-1])
            return terms
        return [a + d * i for i in range(count)]

    def gold(self, problem: Problem) -> str:
        return str(problem.data["next"])

    def score(self, problem: Problem, answer: str) -> Score:
        return number_score(answer, problem.data["next"])

    def guess(self, rng: random.Random, problem: Problem) -> str:
        return self.another_answer(rng)
