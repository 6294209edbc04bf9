"""Logic grids: who has which pet and which drink, from clues that leave exactly one answer."""

import itertools
import random
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from nalar.tasks.answers import words_score
from nalar.tasks.config import GridConfig
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score

PEOPLE = ("Ana", "Ben", "Cleo", "Dian", "Eko")
THINGS = {
    "pet": ("cat", "dog", "fish", "bird", "mouse"),
    "drink": ("milk", "tea", "water", "juice", "coffee"),
    "fruit": ("apple", "pear", "fig", "plum", "mango"),
}

World = tuple[tuple[int, ...], ...]
"""For each kind of thing, which one each person has."""


class Clue(NamedTuple):
    """A sentence, and the worlds in which it is true."""

    text: str
    is_direct: bool
    """Whether it says outright what a person has."""
    worlds: int
    """One bit a world, by its place in `Space.worlds`."""


class Space(NamedTuple):
    """All there is to say of so many people with so many kinds of things."""

    worlds: tuple[World, ...]
    clues: tuple[Clue, ...]


@lru_cache(maxsize=16)
def space(people: int, things: int) -> Space:
    """Every world, and every clue; up to 14,400 worlds and 200 clues."""
    each = tuple(itertools.permutations(range(people)))
    worlds = tuple(itertools.product(each, repeat=things))
    names = [THINGS[kind] for kind in list(THINGS)[:things]]
    clues = []
    for kind, person, value in itertools.product(range(things), range(people), range(people)):
        told = [world[kind][person] == value for world in worlds]
        who, what = PEOPLE[person], names[kind][value]
        clues.append(Clue(f"{who} has the {what}.", True, _bits(told)))
        clues.append(Clue(f"{who} does not have the {what}.", False, _bits(not t for t in told)))
    for (k, v), (m, w) in itertools.combinations(
        itertools.product(range(things), range(people)), 2
    ):
        if k != m:
            told = [world[k].index(v) == world[m].index(w) for world in worlds]
            one, other = names[k][v], names[m][w]
            clues.append(Clue(f"Whoever has the {one} has the {other}.", False, _bits(told)))
            text = f"Whoever has the {one} does not have the {other}."
            clues.append(Clue(text, False, _bits(not t for t in told)))
    return Space(worlds, tuple(clues))


def _bits(told: Iterable[bool]) -> int:
    """The first of them is the lowest bit."""
    return int("".join("1" if t else "0" for t in told)[::-1], 2)


class LogicGrid(Family):
    """Puzzles with one answer, no clue of which can be left out. The key holds the clues, in whatever order."""

    id = "grid"
    is_checkable = True

    def __init__(self, config: GridConfig | None = None) -> None:
        self.settings = config or GridConfig()
        super().__init__(self.settings)

    def make(self, rng: random.Random) -> Problem:
        people, things = self.settings.people, self.settings.things
        found = space(people, things)
        truth = int(rng.random() * len(found.worlds))
        clues = self._clues(rng, found, truth)
        rng.shuffle(clues)
        who, kinds = PEOPLE[:people], list(THINGS)[:things]
        told = " and ".join(f"one {kind} ({', '.join(THINGS[kind][:people])})" for kind in kinds)
        asked = " and ".join(kinds)
        prompt = (
            f"{_listed(who)} each have {told}, no two the same. "
            f"{' '.join(clue.text for clue in clues)} "
            f"Name the {asked} of {_listed(who)}, in this order."
        )
        return Problem(
            task=self.id,
            key=f"grid:{people} {things}:{' '.join(sorted(clue.text for clue in clues))}",
            prompt=prompt,
            data={"answer": self._words(found.worlds[truth])},
        )

    def _clues(self, rng: random.Random, found: Space, truth: int) -> list[Clue]:
        """True clues in random order, each where it rules something out; then without those that are not needed."""
        true = [clue for clue in found.clues if clue.worlds >> truth & 1]
        rng.shuffle(true)
        is_late = [clue.is_direct and rng.random() >= self.settings.direct_frac for clue in true]
        ordered = [c for c, late in zip(true, is_late, strict=True) if not late]
        ordered += [c for c, late in zip(true, is_late, strict=True) if late]
        left, chosen = (1 << len(found.worlds)) - 1, list[Clue]()
        for clue in ordered:
            if left & clue.worlds != left:
                left &= clue.worlds
                chosen.append(clue)
        for clue in list(chosen):
            others = [c for c in chosen if c is not clue]
            left = (1 << len(found.worlds)) - 1
            for other in others:
                left &= other.worlds
            if left == 1 << truth:
                chosen = others
        return chosen

    def _words(self, world: World) -> list[str]:
        """Person by person, what each has."""
        kinds = list(THINGS)[: self.settings.things]
        return [
            THINGS[kind][world[k][person]]
            for person in range(self.settings.people)
            for k, kind in enumerate(kinds)
        ]

    def gold(self, problem: Problem) -> str:
        words, size = problem.data["answer"], self.settings.things
        return ", ".join(" ".join(words[i : i + size]) for i in range(0, len(words), size))

    def score(self, problem: Problem, answer: str) -> Score:
        """Person by person, with spaces or commas between the words."""
        return words_score(answer, problem.data["answer"])

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """Any world, whatever the clues say."""
        worlds = space(self.settings.people, self.settings.things).worlds
        return " ".join(self._words(rng.choice(worlds)))


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
