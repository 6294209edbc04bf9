"""Lessons on small programs: name the steps that the words ask for, then write them as Python."""

import random

from nalar.data.corpora.lesson import Worked
from nalar.tasks.config import ProgramsConfig
from nalar.tasks.family import split_of_key
from nalar.tasks.problem import Problem
from nalar.tasks.programs import LAST, MIDDLE, Plan, Programs, key_of, named, source

_POOL = 3000
"""Train problems, not all distinct, that attempts are about: to make one takes a third of a millisecond."""
_DRAWS = 50
_STEPS = {**MIDDLE, **LAST}


class ProgramsLesson(Worked):
    """A thought such as `square,odd,sum`, then a program of these steps. No pipeline that is held out is ever written.

    The task is asked for problems alone: no sandbox is needed to teach.
    """

    def __init__(self, config: ProgramsConfig) -> None:
        super().__init__(Programs(config, is_judge=False))
        rng = random.Random(0)
        self._train = [self.task.draw(rng, "train") for _ in range(_POOL)]

    def draw(self, rng: random.Random) -> Problem:
        return self._train[int(rng.random() * len(self._train))]

    def work(self, rng: random.Random, problem: Problem, slip_frac: float) -> tuple[list[str], str]:
        plan = _plan(problem)
        for i in range(len(plan)):
            if rng.random() < slip_frac:
                plan = _with_another_step(rng, plan, i)
        return [*map(named, plan)], source(plan).rstrip()

    def piece(self, rng: random.Random, slip_frac: float) -> str:
        """A step in words, by name and in Python."""
        name, k = rng.choice(tuple(_STEPS)), rng.randint(2, 5)
        written = rng.choice(tuple(_STEPS)) if rng.random() < slip_frac else name
        code = _STEPS[written].code.format(k=k)
        return f"{_STEPS[name].words.format(k=k)}: {named((name, k))}: {code}"

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """A program for another problem, or the right one but for a step or two."""
        plan = _plan(self.draw(rng) if rng.random() < 0.3 else problem)
        for _ in range(rng.randint(1, 2)):
            plan = _with_another_step(rng, plan, rng.randrange(len(plan)))
        return source(plan).rstrip()


def _plan(problem: Problem) -> Plan:
    return [(str(name), int(k)) for name, k in problem.data["plan"]]


def _with_another_step(rng: random.Random, plan: Plan, i: int) -> Plan:
    """Step i is another one, or has another number. Where all pipelines so changed are held out, it stays."""
    is_last = i == len(plan) - 1
    for _ in range(_DRAWS):
        name = rng.choice(tuple(LAST if is_last else MIDDLE))
        other = [*plan[:i], (name, 0 if is_last else rng.randint(2, 5)), *plan[i + 1 :]]
        if named(other[i]) != named(plan[i]) and split_of_key(key_of(other)) == "train":
            return other
    return plan
