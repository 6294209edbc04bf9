"""Read short answers strictly: numbers exactly and within bounds, lists of words. Nothing is evaluated."""

import re
from collections.abc import Sequence
from fractions import Fraction
from math import gcd

from nalar.tasks.problem import Score

MAX_DIGITS = 60
"""Of an integer, a numerator, a denominator, or the places after a point."""
MAX_CHARS = 2000
"""Of an answer that is a list."""

_NUMBER = re.compile(r"([-−]?)([0-9]{1,60})(?:/([0-9]{1,60})|\.([0-9]{1,60}))?")
_WORDS = re.compile(r"[\s,]+")

NOT_READ = Score(correct=False, well_formed=False)


def read_number(text: str) -> Fraction | None:
    """An integer, a decimal or a fraction in lowest terms, in ASCII digits; None for any other text.

    A fraction that can be reduced is a calculation left undone: `12/4` is no answer to `What is 12/4?`.
    """
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return None
    sign, whole, below, places = found.groups()
    if below is not None:
        if int(below) < 2 or gcd(int(whole), int(below)) != 1:
            return None
        value = Fraction(int(whole), int(below))
    else:
        places = places or ""
        value = Fraction(int(whole + places), 10 ** len(places))
    return -value if sign else value


def can_be_read(value: int) -> bool:
    """Whether an answer of this value is short enough to be read: a gold one must be."""
    most: int = 10**MAX_DIGITS
    return abs(value) < most


def number_score(answer: str, gold: Fraction | int) -> Score:
    """Well-formed: one number and nothing else."""
    value = read_number(answer)
    if value is None:
        return NOT_READ
    return Score(correct=value == gold, well_formed=True, canonical=str(value))


def numbers_score(answer: str, gold: Sequence[Fraction], names: Sequence[str]) -> Score:
    """Well-formed: as many numbers as names, commas between them, each with `name =` before it or each without."""
    if len(answer) > MAX_CHARS:
        return NOT_READ
    values = []
    for name, part in zip(names, parts := answer.split(","), strict=False):
        before, sign, after = part.partition("=")
        if sign and before.strip() != name:
            return NOT_READ
        values.append(read_number(after if sign else part))
    if len(parts) != len(names) or None in values:
        return NOT_READ
    return Score(
        correct=values == list(gold), well_formed=True, canonical=", ".join(map(str, values))
    )


def read_words(text: str) -> list[str] | None:
    """What stands between commas and spaces; None where the text is too long or empty."""
    if len(text) > MAX_CHARS or not text.strip():
        return None
    return _WORDS.split(text.strip())


def words_score(answer: str, gold: Sequence[str]) -> Score:
    """Well-formed: as many words as the gold answer has, in lower or upper case as it has them."""
    words = read_words(answer)
    if words is None or len(words) != len(gold):
        return NOT_READ
    return Score(correct=words == list(gold), well_formed=True, canonical=" ".join(words))


def plain_decimal(value: Fraction) -> str:
    """A number without an exponent, exactly: `2.5`, `-40`; as a fraction where its decimals do not end."""
    places, rest = 0, value.denominator
    for factor in (2, 5):
        count = 0
        while rest % factor == 0:
            rest //= factor
            count += 1
        places = max(places, count)
    if rest != 1 or places == 0:
        return str(value)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
