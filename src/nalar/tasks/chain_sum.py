"""Chain sums: `3+4-5+6-1+2`, answered by an integer. Only the answer is checked; steps are up to the solver."""

import random
import re
from collections.abc import Iterator

from nalar.tasks.config import ChainSumConfig
from nalar.tasks.problem import Problem, Score, Split, distinct, split_of

_INTEGER = re.compile(r"[-−]?[0-9]{1,9}")
_TERM = re.compile(r"[-+]?[0-9]")


def terms_of(chain: str) -> list[int]:
    """The signed terms of a chain: `3+4-5` gives 3, 4, -5."""
    return [int(term) for term in _TERM.findall(chain)]


class ChainSum:
    """Chains of single digits 1..9 with + and -, whose running total stays at or above min_total."""

    id = "chain_sum"
    searches = False
    is_checkable = False
    is_costly = False

    def __init__(self, config: ChainSumConfig | None = None) -> None:
        self.config = config or ChainSumConfig()

    def draw(self, rng: random.Random, split: Split) -> Problem:
        """Uniform length and digits, uniform signs where both are allowed; the first term is positive."""
        spread = self.config.max_terms - self.config.min_terms + 1
        while True:
            count = self.config.min_terms + int(rng.random() * spread)
            chain, total = self._chain(rng, count)
            key = f"chain_sum:{chain}"
            if split_of(key) == split:
                return Problem(task=self.id, key=key, prompt=chain, data={"total": total})

    def _chain(self, rng: random.Random, count: int) -> tuple[str, int]:
        total = 1 + int(rng.random() * 9)
        chain = str(total)
        for _ in range(count - 1):
            pick = int(rng.random() * 18)
            digit, is_minus = pick // 2 + 1, pick % 2 == 1
            if is_minus and total - digit < self.config.min_total:
                is_minus = False
            chain += f"{'-' if is_minus else '+'}{digit}"
            total += -digit if is_minus else digit
        return chain, total

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        rng = random.Random(f"chain_sum {split} {seed}")
        return distinct(lambda: self.draw(rng, split), n)

    def gold(self, problem: Problem) -> str:
        return str(problem.data["total"])

    def score(self, problem: Problem, answer: str) -> Score:
        """Well-formed: one integer and nothing else."""
        text = answer.strip()
        if not _INTEGER.fullmatch(text):
            return Score(correct=False, well_formed=False)
        value = int(text.replace("−", "-"))
        return Score(correct=value == problem.data["total"], well_formed=True, canonical=str(value))

    def constants(self) -> Iterator[str]:
        yield from map(str, range(-20, 61))

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """The total of another chain."""
        return self.gold(self.draw(rng, "train"))
