"""The settings of the task families. Imports no torch."""

from typing import Literal, get_args

from pydantic import Field

from nalar.config import Config, ConfigError, lookup
from nalar.sandbox.config import Tier


class CountdownConfig(Config):
    """Reach a target with every given number used once."""

    num_numbers: int = Field(default=3, ge=2, le=6)
    """How many numbers a problem gives. Up to 3, where max_number is small, all problems are enumerated, else drawn."""
    min_numbers: int | None = Field(default=None, ge=2, le=6)
    """Fewer numbers that a problem may give, each count as often. None: always num_numbers."""
    max_number: int = Field(default=10, ge=2, le=100)
    """Numbers come from 1..max_number."""
    max_intermediate: int = Field(default=60, ge=2, le=10_000)
    """Every result on the way, the target included, lies in 1..max_intermediate."""
    operators: str = "+-*"
    """Operators from which problems and tries are made, a subset of `+-*/`; division only where it is exact."""

    @property
    def counts(self) -> range:
        """How many numbers a problem can give."""
        return range(self.min_numbers or self.num_numbers, self.num_numbers + 1)

    def model_post_init(self, _context: object) -> None:
        if not self.counts:
            raise ConfigError(
                at="countdown.min_numbers",
                got=str(self.min_numbers),
                want=f"at most num_numbers={self.num_numbers}",
            )
        if not self.operators or set(self.operators) - set("+-*/"):
            raise ConfigError(
                at="countdown.operators",
                got=repr(self.operators),
                want="some of the characters + - * /",
            )


class ChainSumConfig(Config):
    """Add up a chain of single digits."""

    min_terms: int = Field(default=5, ge=2)
    """Shortest chain."""
    max_terms: int = Field(default=7, le=50)
    """Longest chain, inclusive."""
    min_total: int = Field(default=0, le=0)
    """No running total is lower; a term that would go below is added instead."""

    def model_post_init(self, _context: object) -> None:
        if self.min_terms > self.max_terms:
            raise ConfigError(
                at="chain_sum.min_terms",
                got=str(self.min_terms),
                want=f"at most max_terms={self.max_terms}",
            )


class ArithmeticConfig(Config):
    """Calculate: `What is (12+7)*3?`. A ladder from single sums to long expressions."""

    min_terms: int = Field(default=2, ge=2, le=12)
    """Fewest numbers."""
    max_terms: int = Field(default=3, ge=2, le=12)
    """Most numbers, inclusive."""
    min_digits: int = Field(default=1, ge=1, le=12)
    """Of each number."""
    max_digits: int = Field(default=2, ge=1, le=12)
    operators: str = "+-*"
    """Some of `+-*/`; the result is always an integer."""
    parentheses_frac: float = Field(default=0.0, ge=0, le=1)
    """Share of problems of three numbers or more with a pair of parentheses that matters."""

    def model_post_init(self, _context: object) -> None:
        _ordered(self, "arithmetic", "min_terms", "max_terms")
        _ordered(self, "arithmetic", "min_digits", "max_digits")
        if not self.operators or set(self.operators) - set("+-*/"):
            raise ConfigError(
                at="arithmetic.operators",
                got=repr(self.operators),
                want="some of the characters + - * /",
            )


class LinearConfig(Config):
    """Solve linear equations: `3x+5=2x-4`, or as many equations as unknowns."""

    unknowns: int = Field(default=1, ge=1, le=3)
    max_coefficient: int = Field(default=9, ge=2, le=1000)
    """Of what stands before an unknown, and of one number beside it; from -max to max. The last follows from them."""
    max_solution: int = Field(default=20, ge=1, le=10_000)
    """Solutions, or their numerators, lie in -max..max."""
    max_denominator: int = Field(default=1, ge=1, le=100)
    """1: solutions are integers. Above: fractions of one unknown, with denominators up to this."""

    def model_post_init(self, _context: object) -> None:
        if self.unknowns > 1 and self.max_denominator > 1:
            raise ConfigError(
                at="linear.max_denominator",
                got=f"{self.max_denominator} with linear.unknowns={self.unknowns}",
                want="1: several unknowns have integers as solutions",
            )


SequenceRule = Literal["step", "ratio", "growing", "sum", "turns"]


class SequenceConfig(Config):
    """Say the next number of a sequence. All rules are tried on what is shown, and must agree on what comes next."""

    rules: str = "step+ratio+growing+sum+turns"
    """Joined by +. step: +d. ratio: *r. growing: the step grows by d. sum: of the two before.
    turns: two with steps, interleaved."""
    num_shown: int = Field(default=6, ge=6, le=20)
    """Numbers shown; fewer would leave more than one rule."""
    max_start: int = Field(default=20, ge=1, le=100_000)
    """First numbers lie in -max..max."""
    max_step: int = Field(default=9, ge=1, le=10_000)
    """Steps lie in -max..max, ratios in 2..max."""

    @property
    def chosen(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.rules.split("+"))

    def model_post_init(self, _context: object) -> None:
        _known("sequence", "rules", self.chosen, get_args(SequenceRule))
        if self.chosen == ("ratio",) and self.max_step < 2:
            raise ConfigError(at="sequence.max_step", got="1", want="at least 2, for a ratio")


class GraphConfig(Config):
    """Find a shortest path in an undirected graph."""

    num_nodes: int = Field(default=6, ge=3, le=26)
    extra_edges: int = Field(default=3, ge=0, le=60)
    """Edges beyond those that hold the graph together, as far as there is room for them."""
    min_hops: int = Field(default=2, ge=1, le=10)
    """Edges of the shortest path, at least."""
    max_length: int = Field(default=1, ge=1, le=100)
    """1: a path is as long as it has edges. Above: every edge has a length of 1..max."""

    def model_post_init(self, _context: object) -> None:
        if self.min_hops >= self.num_nodes:
            raise ConfigError(
                at="graph.min_hops",
                got=str(self.min_hops),
                want=f"less than num_nodes={self.num_nodes}",
            )


class GridConfig(Config):
    """A logic grid: who has what, from clues that leave one answer."""

    people: int = Field(default=3, ge=2, le=5)
    things: int = Field(default=2, ge=1, le=3)
    """Kinds of things of which each has one: pets, drinks, colours."""
    direct_frac: float = Field(default=0.3, ge=0, le=1)
    """How often a clue is tried that names a person and what they have; the others link things, or deny."""

    def model_post_init(self, _context: object) -> None:
        if self.people**2 * self.things > 50:
            raise ConfigError(
                at="grid.people",
                got=f"{self.people} with grid.things={self.things}",
                want="a grid whose answers can be gone through: 5 people have up to two kinds of things",
            )


class SortingConfig(Config):
    """Put numbers or words in order."""

    items: Literal["numbers", "words"] = "numbers"
    min_items: int = Field(default=3, ge=2, le=50)
    max_items: int = Field(default=6, ge=2, le=50)
    max_number: int = Field(default=99, ge=9, le=10**9)
    """Numbers lie in 0..max."""
    max_letters: int = Field(default=4, ge=2, le=20)
    """Words are of 2..max letters, made up at random."""

    def model_post_init(self, _context: object) -> None:
        _ordered(self, "sorting", "min_items", "max_items")


StringAction = Literal["reverse", "count", "shift", "dedupe"]


class StringsConfig(Config):
    """Do something to the letters of a made-up word."""

    actions: str = "reverse+count+shift+dedupe"
    """Joined by +. reverse: read backwards. count: how often a letter occurs. shift: n places on in the alphabet.
    dedupe: keep the first of each letter."""
    min_letters: int = Field(default=4, ge=3, le=60)
    max_letters: int = Field(default=7, ge=3, le=60)
    num_letters: int = Field(default=8, ge=2, le=26)
    """Different letters that words are made of: fewer, and they repeat more."""
    max_shift: int = Field(default=3, ge=1, le=25)

    @property
    def chosen(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.actions.split("+"))

    def model_post_init(self, _context: object) -> None:
        _ordered(self, "strings", "min_letters", "max_letters")
        _known("strings", "actions", self.chosen, get_args(StringAction))


class HailstoneConfig(Config):
    """Follow a rule that goes by what came last: halve what is even, else three times that and something more."""

    min_steps: int = Field(default=4, ge=1, le=60)
    """Numbers that follow on the first, at least."""
    max_steps: int = Field(default=8, ge=1, le=60)
    """At most; the answer is the last of them."""
    max_start: int = Field(default=999, ge=20, le=10**6)
    """First numbers come from 2..max_start."""
    max_add: int = Field(default=99, ge=9, le=10**6)
    """What is added, an odd number from 1 on."""
    max_value: int = Field(default=9999, ge=99, le=10**9)
    """No number on the way is larger, and none comes twice."""

    def model_post_init(self, _context: object) -> None:
        _ordered(self, "hailstone", "min_steps", "max_steps")
        _ordered(self, "hailstone", "max_start", "max_value")


Quantity = Literal["length", "mass", "time", "volume", "temperature"]


class UnitsConfig(Config):
    """Convert between units whose ratio is exact."""

    quantities: str = "length+mass+time+volume"
    """Some of length, mass, time, volume and temperature, with a + between."""
    max_value: int = Field(default=99, ge=1, le=10**9)
    decimals: int = Field(default=1, ge=0, le=6)
    """Places after the point that the given value may have."""
    imperial: bool = False
    """Also inches, feet, yards, miles, ounces and pounds, by their exact definitions."""

    @property
    def chosen(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.quantities.split("+"))

    def model_post_init(self, _context: object) -> None:
        _known("units", "quantities", self.chosen, get_args(Quantity))


CalendarQuestion = Literal["weekday", "add", "between"]


class CalendarConfig(Config):
    """Reckon with dates of the Gregorian calendar."""

    questions: str = "weekday+add+between"
    """Joined by +. weekday: which one is a date, given that of another. add: the date so many days later.
    between: days apart."""
    first_year: int = Field(default=2000, ge=1600, le=9000)
    last_year: int = Field(default=2030, ge=1600, le=9000)
    """Inclusive."""
    max_days: int = Field(default=40, ge=1, le=100_000)
    """Days that the two dates of a problem lie apart, at most."""

    @property
    def chosen(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.questions.split("+"))

    def model_post_init(self, _context: object) -> None:
        _ordered(self, "calendar", "first_year", "last_year")
        _known("calendar", "questions", self.chosen, get_args(CalendarQuestion))


class ProgramsConfig(Config):
    """Write a small Python function, judged by hidden tests in a sandbox."""

    min_steps: int = Field(default=2, ge=1, le=5)
    """Things that are done to the list, the last of which gives the result."""
    max_steps: int = Field(default=3, ge=1, le=5)
    num_tests: int = Field(default=12, ge=4, le=100)
    """Hidden inputs, the empty list among them."""
    max_items: int = Field(default=8, ge=3, le=100)
    """Of a test's list."""
    max_number: int = Field(default=20, ge=5, le=10**6)
    """Items of tests lie in -max..max."""
    min_tier: Tier = "namespaces"
    """Isolation of what the model wrote; a machine without it is refused (docs/sandbox.md)."""

    def model_post_init(self, _context: object) -> None:
        _ordered(self, "programs", "min_steps", "max_steps")


Spoken = Literal["en", "id"]
"""Of `language.py`, which a config cannot import."""
Act = Literal["greet", "thank", "ask", "invite", "wish", "apologise", "describe"]


class GeneralConfig(Config):
    """Say in one sentence what is asked for: greet, thank, invite, describe."""

    acts: str = "greet+thank+ask+invite+wish+apologise+describe"
    """Joined by +. ask: for a thing. wish: luck. describe: somebody's thing, from two words about it."""
    languages: str = "en+id"
    """Of the requests, joined by +: each is answered in its own."""

    @property
    def chosen_acts(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.acts.split("+"))

    @property
    def chosen_languages(self) -> tuple[Spoken, ...]:
        return _languages("general", self.languages)

    def model_post_init(self, _context: object) -> None:
        _known("general", "acts", self.chosen_acts, get_args(Act))
        _languages("general", self.languages)


class SafetyConfig(Config):
    """Decline what is harmful, help with what is harmless."""

    languages: str = "en+id"
    """Of the requests, joined by +: each is answered in its own."""
    harmful_frac: float = Field(default=0.5, ge=0, le=1)
    """Share of harmful requests."""

    @property
    def chosen_languages(self) -> tuple[Spoken, ...]:
        return _languages("safety", self.languages)

    def model_post_init(self, _context: object) -> None:
        _languages("safety", self.languages)


def _ordered(config: Config, task: str, low: str, high: str) -> None:
    if getattr(config, low) > getattr(config, high):
        raise ConfigError(
            at=f"{task}.{low}",
            got=str(getattr(config, low)),
            want=f"at most {high}={getattr(config, high)}",
        )


def _languages(task: str, names: str) -> tuple[Spoken, ...]:
    """Joined by +; ConfigError where one is unknown."""
    known: dict[str, Spoken] = {language: language for language in get_args(Spoken)}
    return tuple(lookup(name.strip(), known, at=f"{task}.languages") for name in names.split("+"))


def _known(task: str, field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in names:
        lookup(name, {k: k for k in known}, at=f"{task}.{field}")
