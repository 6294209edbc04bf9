"""Documents on plain arithmetic: lists of facts, and word problems over two numbers."""

import random

from nalar.data.config import CorpusConfig
from nalar.data.corpora.sources import Sources
from nalar.data.template import END

_SLIPS = (-10, -2, -1, -1, 1, 1, 2, 10)
_KINDS = ("+", "-", "*", "chain", "chain", "steps", "steps", "steps")
_NAMES = ("Ana", "Budi", "Citra", "Dewi", "Eka", "Tom", "Mia", "Sari")
_THINGS = ("apples", "books", "coins", "eggs", "cards", "mangoes")


def slip(rng: random.Random, equation: str) -> str:
    """The equation with a result that is off by a little."""
    head, _, value = equation.rpartition("=")
    return f"{head}={int(value) + _SLIPS[int(rng.random() * len(_SLIPS))]}"


def facts(rng: random.Random, config: CorpusConfig, sources: Sources) -> str:
    """A list of 5 to 14 facts of one kind, or of steps as tries need them."""
    kind = _KINDS[int(rng.random() * len(_KINDS))]
    count = 5 + int(rng.random() * 10)
    if kind == "steps":
        pool = sources.steps
        lines = [pool[int(rng.random() * len(pool))] for _ in range(count)]
    else:
        table = sources.facts[kind]
        lines = [table[int(rng.random() * len(table))].steps for _ in range(count)]
    lines = [slip(rng, line) if rng.random() < config.slip_frac else line for line in lines]
    return ("\n" if rng.random() < 0.8 else " ").join(lines) + END


def word_problem(rng: random.Random, config: CorpusConfig, sources: Sources) -> str:
    """A story over one fact, with the fact and the answer."""
    operator = "+-*"[int(rng.random() * 3)]
    table = sources.facts[operator]
    fact = table[int(rng.random() * len(table))]
    a, b = fact.expression.split(operator)
    name, thing = _NAMES[int(rng.random() * 8)], _THINGS[int(rng.random() * 6)]
    story = {
        "+": f"{name} has {a} {thing} and gets {b} more.",
        "-": f"{name} has {a} {thing} and gives {b} away.",
        "*": f"{name} has {a} bags of {b} {thing}.",
    }[operator]
    equation = slip(rng, fact.steps) if rng.random() < config.slip_frac else fact.steps
    return f"{story} How many? {equation}, so {equation.rpartition('=')[2]}{END}"
