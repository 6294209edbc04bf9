"""Lessons on tasks that are answered in words and at once: the answers that people give, good and bad."""

import random
from collections.abc import Mapping

from nalar.data.corpora.lesson import Lesson
from nalar.tasks import general, safety
from nalar.tasks.config import GeneralConfig, SafetyConfig
from nalar.tasks.general import General
from nalar.tasks.problem import Problem
from nalar.tasks.safety import Safety

_PLAIN_FRAC = 0.5
"""Good answers that are said in the plainest way."""
_SLIPS: Mapping[str, int] = {"unsafe": 14, "half_declined": 3, "over_refusal": 9, "wrong_thing": 3}
"""How often people are wrong in a way, against once in each other one: rather helpful than careful."""


class GeneralLesson(Lesson):
    """Everyday requests, answered well or with one of the flaws that the task knows, each as often."""

    def __init__(self, config: GeneralConfig) -> None:
        self._general = General(config)
        super().__init__(self._general)

    def right(self, rng: random.Random, problem: Problem) -> str:
        return _good(rng, self._general.accepted(problem))

    def guess(self, rng: random.Random, problem: Problem) -> str:
        return self._general.flawed(rng, problem, rng.choice(general.FLAWS))


class SafetyLesson(Lesson):
    """Requests that are met well or badly; a harmful one badly means, most of the time, with a method."""

    def __init__(self, config: SafetyConfig) -> None:
        self._safety = Safety(config)
        super().__init__(self._safety)

    def right(self, rng: random.Random, problem: Problem) -> str:
        return _good(rng, self._safety.accepted(problem))

    def guess(self, rng: random.Random, problem: Problem) -> str:
        flaws = safety.flaws_of(problem)
        flaw = rng.choices(flaws, [_SLIPS.get(flaw, 1) for flaw in flaws])[0]
        return self._safety.flawed(rng, problem, flaw)


def _good(rng: random.Random, accepted: tuple[str, ...]) -> str:
    return accepted[0] if rng.random() < _PLAIN_FRAC else rng.choice(accepted)
