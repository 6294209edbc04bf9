"""What a lesson on a task is: train problems, answers to them, and of most how they are worked through."""

import random
from abc import ABC, abstractmethod

from nalar.tasks.problem import Problem, Task


class Lesson:
    """One task, and the answers that it gets."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def draw(self, rng: random.Random) -> Problem:
        """A train problem."""
        return self.task.draw(rng, "train")

    def right(self, rng: random.Random, problem: Problem) -> str:
        """A right answer, by someone who happens to know it."""
        return self.task.gold(problem).rstrip()

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """An answer of the right form by someone who gave up."""
        return self.task.guess(rng, problem)


class Worked(Lesson, ABC):
    """A task with the one way in which it is worked through."""

    @abstractmethod
    def work(self, rng: random.Random, problem: Problem, slip_frac: float) -> tuple[list[str], str]:
        """The steps, two at least, and the answer that they end at. A slip is carried on."""

    @abstractmethod
    def piece(self, rng: random.Random, slip_frac: float) -> str:
        """One step of the work by itself, on one line: no problem."""


def off_by_one(rng: random.Random, value: int, slip_frac: float) -> int:
    """The value, or seldom its neighbour."""
    return value + rng.choice((-1, 1)) if rng.random() < slip_frac else value
