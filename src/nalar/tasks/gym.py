"""Problems that the package reasoning-gym makes, judged by scorers of our own: none of its scorers is ever called.

Nine of them execute what the model wrote, others pay for wrong answers. So a data set is here only where its answer is
one number, one word, a list of words or rows of a table, which our readers compare exactly.
"""

import dataclasses
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Literal, Protocol

from nalar.config import Config, ConfigError, UserError, lookup, nearest
from nalar.tasks.answers import (
    MAX_CHARS,
    NOT_READ,
    number_score,
    read_number,
    read_words,
    words_score,
)
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score, is_text
from nalar.tasks.text import normalised

PREFIX = "gym_"
PACKAGE_HINT = "pip install 'nalar[gym]' (it builds one of its dependencies with a C compiler)"
SIZE = 100_000
"""Problems that each data set makes before any repeats: its n-th comes from the seed n."""

Form = Literal["number", "word", "words", "rows"]

DATASETS: Mapping[str, Form] = {
    "ab": "words",
    "aiw": "number",
    "base_conversion": "word",
    "binary_alternation": "number",
    "caesar_cipher": "words",
    "chain_sum": "number",
    "color_cube_rotation": "word",
    "count_bits": "number",
    "count_primes": "number",
    "course_schedule": "word",
    "decimal_chain_sum": "number",
    "dice": "number",
    "gcd": "number",
    "gsm_symbolic": "number",
    "isomorphic_strings": "word",
    "largest_island": "number",
    "lcm": "number",
    "leg_counting": "number",
    "letter_counting": "number",
    "manipulate_matrix": "rows",
    "needle_haystack": "word",
    "path_star": "words",
    "products": "number",
    "ransom_note": "word",
    "rotate_matrix": "rows",
    "simple_geometry": "number",
    "spell_backward": "word",
    "spiral_matrix": "words",
    "syllogism": "word",
    "word_sequence_reversal": "words",
    "word_sorting": "words",
}
"""By name, how its answers are read. Left out: answers that are not unique, data sets with wrong golds among them
(basic_arithmetic rounds some quotients, time_intervals some times) and those that take seconds to make a problem."""


class Generator(Protocol):
    """What makes the problems: the n-th of them is the same every time."""

    def __getitem__(self, n: int, /) -> Mapping[str, Any]:
        """A dict with `question` and `answer`."""
        ...


class GymTask(Family):
    """One data set. A problem's key is its question, so that the hash of the question says which split it is of."""

    def __init__(self, dataset: str, form: Form, generator: Generator) -> None:
        super().__init__(Config())
        self.id, self.form, self._generator = PREFIX + dataset, form, generator

    def make(self, rng: random.Random) -> Problem | None:
        """None where the package makes no problem of this seed, or one whose answer our reader does not accept."""
        try:
            item = self._generator[rng.randrange(SIZE)]
        except (RuntimeError, ValueError):  # some give up after so many tries at a puzzle
            return None
        question, answer = str(item["question"]).strip(), str(item["answer"]).strip()
        if not (is_text(question + answer) and SCORERS[self.form](answer, answer).correct):
            return None
        # What stands before a | in a key would alone decide the split.
        key = f"{self.id}:{normalised(question).replace('|', ' ')}"
        return Problem(self.id, key, question, {"gold": answer})

    def gold(self, problem: Problem) -> str:
        answer: str = problem.data["gold"]
        return answer

    def score(self, problem: Problem, answer: str) -> Score:
        """Well-formed: what the form of the data set says, and nothing else."""
        return SCORERS[self.form](answer, self.gold(problem))

    def guess(self, rng: random.Random, problem: Problem) -> str:
        return self.another_answer(rng)


def _number(answer: str, gold: str) -> Score:
    value = read_number(gold)
    return NOT_READ if value is None else number_score(answer, Fraction(value))


def _word(answer: str, gold: str) -> Score:
    words = read_words(answer)
    return NOT_READ if words is None or len(words) != 1 else words_score(answer, [gold])


def _words(answer: str, gold: str) -> Score:
    return words_score(answer, read_words(gold) or [])


def _rows(answer: str, gold: str) -> Score:
    """Well-formed: as many rows as the gold answer has, each with as many words."""
    if len(answer) > MAX_CHARS:
        return NOT_READ
    given, wanted = (
        [line.split() for line in text.strip().splitlines()] for text in (answer, gold)
    )
    if [len(row) for row in given] != [len(row) for row in wanted]:
        return NOT_READ
    canonical = "\n".join(" ".join(row) for row in given)
    return Score(correct=given == wanted, well_formed=True, canonical=canonical)


SCORERS: Mapping[Form, Callable[[str, str], Score]] = {
    "number": _number,
    "word": _word,
    "words": _words,
    "rows": _rows,
}


def open_gym(word: str, settings: Mapping[str, str], *, at: str) -> GymTask:
    """The data set that `gym_NAME` means. UserError where the package is missing, or a setting is none of it."""
    name = word.removeprefix(PREFIX)
    form = lookup(name, DATASETS, at=at)
    try:
        from reasoning_gym.factory import (
            DATASETS as made,
        )  # a second, and matplotlib
        from reasoning_gym.factory import (
            create_dataset,
        )
    except ImportError:
        raise UserError(
            at=at, got=f"no package reasoning-gym, which makes {word}", want="it", hint=PACKAGE_HINT
        ) from None
    given = _typed(made[name][1], settings, at=at)
    try:
        generator = create_dataset(name, seed=0, size=SIZE, **given)
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(
            at=at, got=str(dict(settings)), want=f"settings that work: {error}"
        ) from None
    return GymTask(name, form, generator)


def _typed(config: Any, settings: Mapping[str, str], *, at: str) -> dict[str, Any]:
    """Settings as the config of a data set has them: whole numbers, numbers, truth values and texts."""
    readers: Mapping[type, Callable[[str], Any]] = {
        bool: lambda text: {"True": True, "False": False}[text],
        int: int,
        float: float,
        str: str,
    }
    usual = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if type(field.default) in readers and field.name not in ("seed", "size")
    }
    given = {}
    for name, text in settings.items():
        if name not in usual:
            close = nearest(name, usual)
            raise ConfigError(
                at=at,
                got=repr(name),
                want="one of " + ", ".join(sorted(usual)),
                hint=close and f"did you mean {close!r}?",
            )
        kind = type(usual[name])
        try:
            given[name] = readers[kind](text)
        except (ValueError, KeyError):
            raise ConfigError(at=at, got=f"{name}={text}", want=f"{kind.__name__}") from None
    return given
