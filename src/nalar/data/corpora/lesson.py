"""What a lesson on a task is: train problems, how they are worked through, and pieces of that work."""

import random
from abc import ABC, abstractmethod

from nalar.tasks.problem import Problem, Task


class Lesson(ABC):
    """One task, and the one way in which it is worked through."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def work(self, rng: random.Random, problem: Problem, slip_frac: float) -> tuple[list[str], str]:
        """The steps, two at least, and the answer that they end at. A slip is carried on."""

    @abstractmethod
    def piece(self, rng: random.Random, slip_frac: float) -> str:
        """One step of the work by itself, on one line: no problem."""

    def draw(self, rng: random.Random) -> Problem:
        """A train problem."""
        return self.task.draw(rng, "train")

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """An answer of the right form by someone who gave up."""
        return self.task.guess(rng, problem)


def off_by_one(rng: random.Random, value: int, slip_frac: float) -> int:
    """The value, or seldom its neighbour."""
    return value + rng.choice((-1, 1)) if rng.random() < slip_frac else value
