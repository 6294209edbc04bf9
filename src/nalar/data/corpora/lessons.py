"""Lessons on a task beyond Countdown and chain sums: pieces of its work, and attempts at its train problems.

An attempt answers at once, gives up on the way and guesses, or is worked through, as often as the config says. None is
left out for being wrong.
"""

import random
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from nalar.data.config import LessonConfig
from nalar.data.corpora.equations import LinearLesson
from nalar.data.corpora.lesson import Lesson
from nalar.data.corpora.letters import StringsLesson
from nalar.data.corpora.ordering import SortingLesson
from nalar.data.corpora.pipelines import ProgramsLesson
from nalar.data.corpora.series import SequenceLesson
from nalar.data.corpora.sums import SumsLesson
from nalar.data.template import END, turn
from nalar.tasks.problem import Problem
from nalar.tasks.registry import settings_of

MAKERS: Mapping[str, Callable[[Any], Lesson]] = {
    "arithmetic": SumsLesson,
    "linear": LinearLesson,
    "sequence": SequenceLesson,
    "sorting": SortingLesson,
    "strings": StringsLesson,
    "programs": ProgramsLesson,
}
"""By task id, from the task's settings."""


class Taught(NamedTuple):
    """A lesson and how it is given."""

    lesson: Lesson
    config: LessonConfig

    def attempt(self, rng: random.Random) -> str:
        """A dialogue on one train problem."""
        lesson, config = self
        problem = lesson.draw(rng)
        draw = rng.random()
        if draw < config.blurt_frac:
            return turn(problem.prompt, "", self._guess(rng, problem))
        steps, answer = lesson.work(rng, problem, config.slip_frac)
        if draw < config.blurt_frac + config.partial_frac:
            thought = ",".join(steps[: rng.randrange(1, len(steps))])
            return turn(problem.prompt, thought, self._guess(rng, problem))
        return turn(problem.prompt, ",".join(steps), answer)

    def pieces(self, rng: random.Random) -> str:
        """A list of 5 to 12 single steps."""
        count = 5 + int(rng.random() * 8)
        lines = [self.lesson.piece(rng, self.config.slip_frac) for _ in range(count)]
        return "\n".join(lines) + END

    def _guess(self, rng: random.Random, problem: Problem) -> str:
        if rng.random() < self.config.guess_right_frac:
            return self.lesson.task.gold(problem).rstrip()
        return self.lesson.guess(rng, problem)


@lru_cache(maxsize=16)
def taught(config: LessonConfig) -> Taught:
    """ConfigError where the task's settings are none that the lesson knows to work through."""
    name, settings = settings_of(config.task, at="corpus.lessons")
    return Taught(MAKERS[name](settings), config)
