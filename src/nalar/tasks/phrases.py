"""Short answers in words: the sentences that a pattern allows, and what can be told of any text. Imports no torch."""

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nalar.tasks.language import Language

MAX_CHARS = 200
"""Of an answer in words; longer ones are no answer."""
MARKS = ".!?"
_SLOT = re.compile(r"\{\w+\}")
_CHOICE = re.compile(r"\[([^]]*)\]")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def expanded(pattern: str) -> list[str]:
    """All texts of a pattern: `[a|b]` is a or b, `[a|]` a or nothing. The first is made of the first choices."""
    parts = _CHOICE.split(pattern)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def words_of(text: str) -> list[str]:
    """In lower case, as far as the answer may be long."""
    return _WORD.findall(text[: MAX_CHARS + 1].lower())


def holds(words: Sequence[str], phrase: str) -> bool:
    """Whether the words of a phrase stand among them, one behind the other."""
    wanted = words_of(phrase)
    return any(
        list(words[i : i + len(wanted)]) == wanted for i in range(len(words) - len(wanted) + 1)
    )


def is_plain(text: str) -> bool:
    """Whether it is one line of ASCII with a word in it, short enough for an answer."""
    return 0 < len(text) <= MAX_CHARS and text.isascii() and text.isprintable() and _has_word(text)


def _has_word(text: str) -> bool:
    return any(len(word) > 1 for word in words_of(text))


def is_one_sentence(text: str) -> bool:
    """From a capital to its only end mark."""
    return (
        is_plain(text)
        and text[0].isupper()
        and text[-1] in MARKS
        and not any(mark in text[:-1] for mark in MARKS)
    )


def says_once(words: Sequence[str], at_most: int) -> bool:
    """Whether a text is short, and no two words stand in it twice in the same order, nor one twice in a row."""
    pairs = list(itertools.pairwise(words))
    return (
        len(words) <= at_most
        and len(set(pairs)) == len(pairs)
        and all(first != second for first, second in pairs)
    )


def sentence(text: str) -> str:
    """With a capital."""
    return text[:1].upper() + text[1:]


def either_mark(texts: Iterable[str]) -> Iterator[str]:
    """What ends in a full stop may end in an exclamation mark."""
    for text in texts:
        yield text
        if text.endswith("."):
            yield text[:-1] + "!"


def cut(text: str, keep: float) -> str:
    """A sentence that breaks off: this share of its words, one at least, and no mark."""
    words = text.rstrip(MARKS).split(" ")
    return " ".join(words[: max(1, min(len(words) - 1, round(len(words) * keep)))]).rstrip(",")


def stammered(rng: random.Random, text: str) -> str:
    """A sentence with one word of it several times in a row."""
    words = text.split(" ")
    at = rng.randrange(len(words) - 1)
    return " ".join([*words[:at], *[words[at].rstrip(",")] * 3, *words[at:]])


def pairs(text: str) -> dict[str, Mapping[Language, str]]:
    """Of `cake/kue tea/teh`, by the English word; `_` stands for a space."""
    found = (pair.replace("_", " ").split("/") for pair in text.split())
    return {en: {"en": en, "id": indonesian} for en, indonesian in found}


def said_as(words: Sequence[str], phrase: str, language: Language) -> bool:
    """Whether a phrase stands among the words; an Indonesian one may end in -nya."""
    return holds(words, phrase) or (language == "id" and holds(words, f"{phrase}nya"))


def vocabulary(patterns: Iterable[str], language: Language) -> frozenset[str]:
    """The words of all texts of the patterns, Indonesian ones with -nya too."""
    texts = (_SLOT.sub("", text) for pattern in patterns for text in expanded(pattern))
    words = {word for text in texts for word in words_of(text)}
    return frozenset(words | ({f"{word}nya" for word in words} if language == "id" else set()))
