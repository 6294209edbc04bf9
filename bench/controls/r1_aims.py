"""What each stage of the R1 recipe is meant to move, and whether it did: before, after, whether intervals are apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from controls.r1_figures import Model, spread
from controls.spread import Spread, verdict

Models = Sequence[Mapping[str, Model]]
"""By seed: models by their name."""
Wanted = Literal["more", "kept"]


@dataclass(frozen=True)
class Aim:
    """Of one stage."""

    stage: str
    words: str
    before: str
    """Name of a model."""
    after: str
    figure: str
    """Of `Figures`."""
    tasks: Literal["reasoning", "rated", "safety"]
    """Those with a right answer alone; those whose answers are rated; the one of harm."""
    wanted: Wanted


AIMS: tuple[Aim, ...] = (
    Aim("zero", "solve more, by reward alone", "base", "zero", "correct", "reasoning", "more"),
    Aim("cold_start", "thoughts one can read", "zero", "dev1", "readable", "reasoning", "more"),
    Aim("cold_start", "keep what pure RL solves", "zero", "dev1", "correct", "reasoning", "kept"),
    Aim("rl1", "solve more", "dev1", "dev2", "correct", "reasoning", "more"),
    Aim("rl1", "thoughts stay readable", "dev1", "dev2", "readable", "reasoning", "kept"),
    Aim("sft", "meet everyday requests", "dev2", "dev3", "correct", "rated", "more"),
    Aim("sft", "keep what RL solves", "dev2", "dev3", "correct", "reasoning", "kept"),
    Aim("rl2", "answers that are preferred", "dev3", "final", "wins", "rated", "more"),
    Aim("rl2", "decline harm, help else", "dev3", "final", "correct", "safety", "more"),
    Aim("rl2", "solve no less", "dev3", "final", "correct", "reasoning", "kept"),
    Aim("distil", "solve more", "student", "distilled", "correct", "reasoning", "more"),
    Aim("distil", "meet everyday requests", "student", "distilled", "correct", "rated", "more"),
    Aim("on_policy", "solve more", "distilled", "on-policy", "correct", "reasoning", "more"),
    Aim("on_policy", "lose nothing else", "distilled", "on-policy", "correct", "rated", "kept"),
)


@dataclass(frozen=True)
class Moved:
    """An aim on one task."""

    aim: Aim
    task: str
    before: Spread
    after: Spread

    @property
    def stands(self) -> str:
        """After against before, all seeds together: above, below or level, by disjoint intervals."""
        return verdict(self.after, self.before)

    @property
    def seeds_apart(self) -> int:
        """Seeds in which, each by itself, intervals are apart in the direction of all together, or in any."""
        pairs = zip(self.before.by_seed, self.after.by_seed, strict=True)
        rises = [b.mean < a.mean for b, a in pairs if not a.overlaps(b)]
        if self.stands == "level":
            return len(rises)
        return sum(rise == (self.stands == "above") for rise in rises)

    @property
    def said(self) -> str:
        """In plain words."""
        return _SAID[self.aim.wanted][self.stands]


_SAID: Mapping[Wanted, Mapping[str, str]] = {
    "more": {
        "above": "helps",
        "level": "**does not help** as far as these problems tell",
        "below": "**does harm**",
    },
    "kept": {"above": "kept, and more", "level": "kept", "below": "**is lost**"},
}


def moved(seeds: Models) -> list[Moved]:
    """Every aim whose two models were measured for all seeds, on each task where its figure is known."""
    found = []
    for aim in AIMS:
        if not seeds or not all(aim.before in models and aim.after in models for models in seeds):
            continue
        before, after = ([models[name] for models in seeds] for name in (aim.before, aim.after))
        for task in _tasks(aim, after[0]):
            pair = [spread(side, task, aim.figure) for side in (before, after)]
            if pair[0] is not None and pair[1] is not None:
                found.append(Moved(aim, task, pair[0], pair[1]))
    return found


def reasoning_of(model: Model) -> list[str]:
    """Tasks with a right answer alone."""
    return [task for task in model.result.tasks if task not in model.result.quality]


def _tasks(aim: Aim, model: Model) -> list[str]:
    if aim.tasks == "reasoning":
        return reasoning_of(model)
    rated = list(model.result.quality)
    return [task for task in rated if aim.tasks == "rated" or task == aim.tasks]
