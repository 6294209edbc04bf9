"""Lessons on number sequences: the steps between the numbers, the step that follows, and the number it leads to."""

import random
from itertools import pairwise

from nalar.config import ConfigError
from nalar.data.corpora.lesson import Worked, off_by_one
from nalar.tasks.config import SequenceConfig
from nalar.tasks.problem import Problem
from nalar.tasks.sequence import NumberSequence


class SequenceLesson(Worked):
    """`..., 2, 5, 9, 14, 20, 27` is worked as `+3,+4,+5,+6,+7,then +8,27+8=35`."""

    def __init__(self, config: SequenceConfig) -> None:
        if set(config.chosen) - {"step", "growing"}:
            raise ConfigError(
                at="corpus.lessons",
                got=f"sequences with rules={config.rules}",
                want="rules=step, growing, or step+growing, which the lesson works through",
            )
        super().__init__(NumberSequence(config))
        self._start, self._step = config.max_start, config.max_step

    def work(self, rng: random.Random, problem: Problem, slip_frac: float) -> tuple[list[str], str]:
        terms = [int(term) for term in problem.prompt.partition("?")[2].split(",")]
        steps = [off_by_one(rng, b - a, slip_frac) for a, b in pairwise(terms)]
        following = off_by_one(rng, 2 * steps[-1] - steps[-2], slip_frac)
        value = off_by_one(rng, terms[-1] + following, slip_frac)
        shown = [f"{step:+d}" for step in steps]
        return [*shown, f"then {following:+d}", f"{terms[-1]}{following:+d}={value}"], str(value)

    def piece(self, rng: random.Random, slip_frac: float) -> str:
        """The step from one number to another, or a number and a step."""
        a, d = rng.randint(-3 * self._start, 3 * self._start), self._step
        step = rng.randint(-5 * d, 5 * d)
        if rng.random() < 0.5:
            return f"{a}, {a + step}: {off_by_one(rng, step, slip_frac):+d}"
        return f"{a}{step:+d}={off_by_one(rng, a + step, slip_frac)}"

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """A number near the last one shown."""
        last = int(problem.prompt.rsplit(" ", 1)[1])
        return str(last + rng.randint(-3 * self._step, 3 * self._step))
