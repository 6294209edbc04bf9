"""Lessons on a task beyond Countdown and chain sums: pieces of its work, and attempts at its train problems.

An attempt answers at once, gives up on the way and guesses, or is worked through, as often as the config says; a task
without steps is always answered at once. None is left out for being wrong.
"""

import random
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from nalar.data.config import LessonConfig
from nalar.data.corpora.equations import LinearLesson
from nalar.data.corpora.lesson import Lesson, Worked
from nalar.data.corpora.letters import StringsLesson
from nalar.data.corpora.ordering import SortingLesson
from nalar.data.corpora.pipelines import ProgramsLesson
from nalar.data.corpora.replies import GeneralLesson, SafetyLesson
from nalar.data.corpora.series import SequenceLesson
from nalar.data.corpora.sums import SumsLesson
from nalar.data.corpora.wording import drawn_languages, worded
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
    "general": GeneralLesson,
    "safety": SafetyLesson,
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
        if not isinstance(lesson, Worked):
            return turn(problem.prompt, "", self._guess(rng, problem))
        draw = rng.random()
        if draw < config.blurt_frac:
            return turn(problem.prompt, "", self._guess(rng, problem))
        steps, answer = lesson.work(rng, problem, config.slip_frac)
        if draw < config.blurt_frac + config.partial_frac:
            thought = self._thought(rng, steps[: rng.randrange(1, len(steps))])
            return turn(problem.prompt, thought, self._guess(rng, problem))
        return turn(problem.prompt, self._thought(rng, steps), answer)

    def pieces(self, rng: random.Random) -> str:
        """A list of 5 to 12 single steps, of a task that has steps."""
        lesson = self.lesson
        assert isinstance(lesson, Worked), lesson.task.id
        count = 5 + int(rng.random() * 8)
        lines = [lesson.piece(rng, self.config.slip_frac) for _ in range(count)]
        return "\n".join(self._thought(rng, [line]) for line in lines) + END

    def _thought(self, rng: random.Random, steps: list[str]) -> str:
        if self.config.wording == "symbols":
            return ",".join(steps)
        return worded(steps, drawn_languages(rng, len(steps)))

    def _guess(self, rng: random.Random, problem: Problem) -> str:
        if rng.random() < self.config.guess_right_frac:
            return self.lesson.right(rng, problem)
        return self.lesson.guess(rng, problem)


@lru_cache(maxsize=16)
def taught(config: LessonConfig) -> Taught:
    """ConfigError where the task's settings are none that the lesson knows to work through."""
    name, settings = settings_of(config.task, at="corpus.lessons")
    return Taught(MAKERS[name](settings), config)
