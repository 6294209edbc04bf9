"""Which level of a task comes next, by how often each was solved so far. Imports no torch."""

import random
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from nalar.config import ConfigError
from nalar.rl.config import CurriculumConfig
from nalar.rl.rollout import Rollout
from nalar.tasks.levels import Leveled
from nalar.tasks.problem import Problem, Split, Task

State: TypeAlias = dict[str, tuple[float, float]]
"""By level: problems solved and problems seen, both fading. The same after a round trip through JSON."""

_PRIOR = 0.25
"""Of a problem, solved and not solved: little, since what a problem shows is a share of many responses."""


class Curriculum:
    """Draws problems of one task, rather of the levels that are solved about half the time.

    A level that is always or never solved teaches nothing to rewards that are compared within a group: the chance that
    a group differs is largest at one half. What is drawn follows from the state and the random numbers handed in.
    """

    def __init__(self, task: Leveled, config: CurriculumConfig) -> None:
        """config: with a focus."""
        assert config.focus is not None
        self.task, self._config, self._focus = task, config, config.focus
        self._seen: State = dict.fromkeys(task.levels, (0.0, 0.0))

    def draw(self, rng: random.Random, split: Split) -> Problem:
        """A problem, its level in `Problem.level`."""
        shares = self.shares()
        (level,) = rng.choices(list(shares), list(shares.values()))
        return self.task.draw_at(level, rng, split)

    def see(self, problem: Problem, success_frac: float) -> None:
        """Share of a problem's responses that were correct, of those that got a verdict. Call it in a fixed order."""
        if not 0 <= success_frac <= 1:
            raise ValueError(f"success_frac of {problem.key} is {success_frac}, wanted 0 to 1")
        if problem.level not in self._seen:
            raise ValueError(
                f"{problem.key} is of level {problem.level!r}, not of {list(self._seen)}"
            )
        solved, seen = self._seen[problem.level]
        keep = 1 - 1 / self._config.memory_problems
        self._seen[problem.level] = keep * solved + success_frac, keep * seen + 1

    def rates(self) -> Mapping[str, float]:
        """How often each level was solved of late, and half of half a problem more: 0.5 for a level not seen yet."""
        return {
            level: (solved + _PRIOR) / (seen + 2 * _PRIOR)
            for level, (solved, seen) in self._seen.items()
        }

    def shares(self) -> Mapping[str, float]:
        """Chance of each level to be drawn next: never less than its even part of `explore_frac`."""
        weights = {
            level: (4 * rate * (1 - rate)) ** self._focus for level, rate in self.rates().items()
        }
        total, even = sum(weights.values()), self._config.explore_frac / len(weights)
        rest = 1 - self._config.explore_frac
        return {level: even + rest * weight / total for level, weight in weights.items()}

    def state(self) -> State:
        return dict(self._seen)

    def restore(self, state: State) -> None:
        """ConfigError where the state is of other levels than the task has."""
        if state.keys() != self._seen.keys():
            raise ConfigError(
                at=f"curriculum of {self.task.id}",
                got=f"a state of the levels {sorted(state)}",
                want=f"one of {list(self._seen)}",
            )
        self._seen = {level: state[level] for level in self._seen}


class Curricula:
    """One for each task with levels, where there is a focus; a task without draws for itself."""

    def __init__(
        self, tasks: Sequence[Task], config: CurriculumConfig, states: Mapping[str, State]
    ) -> None:
        """states: by task, what the steps before have seen."""
        self._of = {
            task.id: Curriculum(task, config)
            for task in tasks
            if isinstance(task, Leveled) and config.focus is not None
        }
        for name in states.keys() & self._of.keys():
            self._of[name].restore(states[name])

    def of(self, tasks: Sequence[Task]) -> list[Task | Curriculum]:
        """Who draws in the place of each task."""
        return [self._of.get(task.id, task) for task in tasks]

    def see(self, groups: Sequence[Sequence[Rollout]]) -> None:
        """The groups that became whole in a step, in their order."""
        for group in groups:
            curriculum = self._of.get(group[0].problem.task)
            told = [rollout.correct for rollout in group if rollout.score.error is None]
            if curriculum is not None and told:
                curriculum.see(group[0].problem, sum(told) / len(told))

    def state(self) -> dict[str, State]:
        return {name: curriculum.state() for name, curriculum in self._of.items()}
