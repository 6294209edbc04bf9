"""Which level of a task comes next, by how often each was solved so far. Imports no torch."""

import random
from collections.abc import Mapping
from typing import TypeAlias

from nalar.config import ConfigError
from nalar.rl.config import CurriculumConfig
from nalar.tasks.levels import Leveled
from nalar.tasks.problem import Problem, Task

State: TypeAlias = dict[str, list[float]]
"""By level: problems solved and problems seen, both fading. Plain JSON, and the same after a round trip."""

_PRIOR = 0.25
"""Of a problem, solved and not solved: little, since what a problem shows is a share of many responses."""


class Curriculum:
    """Draws train problems of one task, rather of the levels that are solved about half the time.

    A level that is always or never solved teaches nothing to rewards that are compared within a group: the chance that
    a group differs is largest at one half. What is drawn follows from the state and the random numbers handed in.
    A task of one level, or no config, is drawn from as if there were no curriculum.
    """

    def __init__(self, task: Task, config: CurriculumConfig | None = None) -> None:
        self.task, self.config = task, config
        self._levels = list(task.levels) if isinstance(task, Leveled) else []
        self._seen: State = {level: [0.0, 0.0] for level in self._levels}

    def draw(self, rng: random.Random) -> Problem:
        """A train problem, its level in `Problem.level`."""
        if self.config is None or not isinstance(self.task, Leveled):
            return self.task.draw(rng, "train")
        shares = self.shares()
        (level,) = rng.choices(list(shares), list(shares.values()))
        return self.task.draw_at(level, rng, "train")

    def see(self, problem: Problem, success_frac: float) -> None:
        """Share of a problem's responses that were correct, of those that got a verdict. Call it in a fixed order."""
        if not 0 <= success_frac <= 1:
            raise ValueError(f"success_frac of {problem.key} is {success_frac}, wanted 0 to 1")
        if self.config is None or not self._levels:
            return
        if problem.level not in self._seen:
            raise ValueError(f"{problem.key} is of level {problem.level!r}, not of {self._levels}")
        seen = self._seen[problem.level]
        keep = 1 - 1 / self.config.memory_problems
        seen[0], seen[1] = keep * seen[0] + success_frac, keep * seen[1] + 1

    def rates(self) -> Mapping[str, float]:
        """How often each level was solved of late, and half of half a problem more: 0.5 for a level not seen yet."""
        return {
            level: (solved + _PRIOR) / (seen + 2 * _PRIOR)
            for level, (solved, seen) in self._seen.items()
        }

    def shares(self) -> Mapping[str, float]:
        """Chance of each level to be drawn next: never less than its even part of `explore_frac`."""
        if self.config is None:
            return {level: 1 / len(self._levels) for level in self._levels}
        weights = {
            level: (4 * rate * (1 - rate)) ** self.config.focus
            for level, rate in self.rates().items()
        }
        total, even = sum(weights.values()), self.config.explore_frac / len(weights)
        rest = 1 - self.config.explore_frac
        return {level: even + rest * weight / total for level, weight in weights.items()}

    def state(self) -> State:
        return {level: list(seen) for level, seen in self._seen.items()}

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """ConfigError where the state is of other levels than the task has."""
        if state.keys() != self._seen.keys():
            raise ConfigError(
                at=f"curriculum of {self.task.id}",
                got=f"a state of the levels {sorted(state)}",
                want=f"one of {self._levels}",
            )
        self._seen = {level: [float(x) for x in state[level]] for level in self._levels}
