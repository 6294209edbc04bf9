"""What the procedural documents draw from, computed once per configuration. Train problems only."""

import itertools
import random
from collections.abc import Sequence
from functools import lru_cache

from nalar.data.config import CorpusConfig
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.countdown import Countdown, Try, split_of_numbers

_SAMPLED_TRIES = 20_000
CHAIN_TOTALS = range(41)
"""Running totals that facts about chains start from."""


class Sources:
    """Tasks and tables. All tries over the full count of numbers are over number sets of the train split."""

    def __init__(self, config: CorpusConfig) -> None:
        self.countdown = Countdown(config.countdown)
        self.chain_sum = ChainSum(config.chain_sum)
        self.holds_out_three = 3 in config.countdown.counts
        """Whether there are held-out problems over three numbers, which two steps of a chain must not solve."""
        self.is_enumerated = self.countdown.is_enumerated
        self.tries = self._train_tries(config)
        self.tries_by_value = _by_value(self.tries)
        self.facts = _facts(config)
        self.pairs = self.facts["+"] + self.facts["-"] + self.facts["*"]
        """One-step tries."""
        self.pairs_by_value = _by_value(self.pairs)
        self.steps = [step for t in self.tries for step in t.steps.split(",")]
        """Single steps of tries, as often as tries need them."""

    def tries_over(self, numbers: tuple[int, ...]) -> Sequence[Try]:
        """Tries over the numbers of one problem: all of them, or a few where there are too many."""
        if self.is_enumerated:
            return self.countdown.tries(numbers)
        rng = random.Random(str(numbers))
        return [self.countdown.random_try(rng, numbers) for _ in range(12)]

    def _train_tries(self, config: CorpusConfig) -> list[Try]:
        top, count = config.countdown.max_number, config.countdown.num_numbers
        if self.is_enumerated:
            every = itertools.combinations_with_replacement(range(1, top + 1), count)
            train = (numbers for numbers in every if split_of_numbers(numbers) == "train")
            return [t for numbers in train for t in self.countdown.tries(numbers)]
        rng = random.Random(0)
        draws = (self.countdown.draw_numbers(rng, "train") for _ in range(_SAMPLED_TRIES))
        return [self.countdown.random_try(rng, numbers) for numbers in draws]


@lru_cache(maxsize=4)
def sources(config: CorpusConfig) -> Sources:
    return Sources(config)


def _by_value(tries: Sequence[Try]) -> dict[int, list[Try]]:
    found: dict[int, list[Try]] = {}
    for t in tries:
        found.setdefault(t.value, []).append(t)
    return found


def _facts(config: CorpusConfig) -> dict[str, list[Try]]:
    """True facts over two numbers with results that steps of tries can have, and `chain`: those of running totals."""
    top, limit = config.countdown.max_number, config.countdown.max_intermediate
    pairs = [(a, b) for a in range(1, limit + 1) for b in range(1, top + 1)]
    return {
        "+": [_fact(a, "+", b, a + b) for a, b in pairs if a + b <= limit],
        "-": [_fact(a, "-", b, a - b) for a, b in pairs if a > b],
        "*": [_fact(a, "*", b, a * b) for a, b in pairs if a * b <= limit],
        "chain": [
            _fact(a, sign, b, a + b if sign == "+" else a - b)
            for a in CHAIN_TOTALS
            for b in range(1, 10)
            for sign in "+-"
            if sign == "+" or a - b >= config.chain_sum.min_total
        ],
    }


def _fact(a: int, operator: str, b: int, value: int) -> Try:
    return Try(f"{a}{operator}{b}={value}", value, f"{a}{operator}{b}")
