"""Lessons on sums of two numbers: column by column from the right, with what was carried."""

import random
import re

from nalar.config import ConfigError
from nalar.data.corpora.lesson import Worked, off_by_one
from nalar.tasks.arithmetic import Arithmetic
from nalar.tasks.config import ArithmeticConfig
from nalar.tasks.problem import Problem


class SumsLesson(Worked):
    """`What is 47+385?` is worked as `7+5=12:2,4+8+1=13:32,3+1=4:432`: behind each colon the sum so far."""

    def __init__(self, config: ArithmeticConfig) -> None:
        if config.max_terms != 2 or set(config.operators) != {"+"}:
            raise ConfigError(
                at="corpus.lessons",
                got=f"arithmetic of up to {config.max_terms} numbers with {config.operators}",
                want="arithmetic,max_terms=2,operators=+: sums are what the lesson works through",
            )
        super().__init__(Arithmetic(config))

    def work(self, rng: random.Random, problem: Problem, slip_frac: float) -> tuple[list[str], str]:
        a, b = re.findall(r"\d+", problem.prompt)
        steps, done, carried = list[str](), "", 0
        for place in range(max(len(a), len(b))):
            terms = [int(n[-1 - place]) for n in (a, b) if place < len(n)] + [1] * carried
            total = off_by_one(rng, sum(terms), slip_frac)
            is_last = place == max(len(a), len(b)) - 1
            carried = 0 if is_last else int(total > 9)
            done = (str(total) if is_last else str(total % 10)) + done
            steps.append(f"{'+'.join(map(str, terms))}={total}:{done}")
        return steps, done

    def piece(self, rng: random.Random, slip_frac: float) -> str:
        terms = [rng.randrange(10), rng.randrange(10)] + [1] * (rng.random() < 0.5)
        return f"{'+'.join(map(str, terms))}={off_by_one(rng, sum(terms), slip_frac)}"

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """A number about as long as the sum."""
        total = int(problem.data["value"])
        return str(max(0, total + rng.choice((-100, -20, -11, -10, -2, -1, 1, 2, 9, 10, 20, 100))))
