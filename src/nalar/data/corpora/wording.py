"""Thoughts in words: steps of calculation joined by small words, each step in a language of its own, or all in one.

`3-2=1,-4-5=-9,-9/1=-9` becomes `3-2 is 1, so -4-5 is -9, then -9/1 is -9`, or `3-2 jadi 1, maka -4-5 jadi -9, …`.
All small words are FUNCTION_WORDS, so that `share_of` tells which language a thought is in. Imports no torch.
"""

import random
import re
from collections.abc import Mapping, Sequence

from nalar.tasks.language import LANGUAGES, Language

EQUALS: Mapping[Language, str] = {"en": "is", "id": "jadi"}
"""In place of the sign."""
JOINTS: tuple[Mapping[Language, str], ...] = (
    {"en": "so", "id": "maka"},
    {"en": "then", "id": "lalu"},
    {"en": "and", "id": "dan"},
)
"""Before the second step, the third, the fourth, and again from the first one on."""
STAYS = 0.7
"""Chance that a step is in the language of the one before it: of thoughts of three steps about half mix."""

_TRANSLATED: Mapping[str, Mapping[Language, str]] = {
    word: pair for pair in (EQUALS, *JOINTS) for word in pair.values()
}
_WORD = "|".join(_TRANSLATED)
_IS = "|".join(EQUALS.values())
_JOINT = "|".join(word for pair in JOINTS for word in pair.values())
_SIGNS = r"[-+*/().:0-9x]+"
_STEP = rf"{_SIGNS}(?:(?: (?:{_IS}) |=){_SIGNS})?"
_THOUGHT = re.compile(rf"{_STEP}(?:, ?(?:(?:{_JOINT}) )?{_STEP})*")
_SMALL = re.compile(rf"\b(?:{_WORD})\b")
MAX_CHARS = 4000
"""Of a thought that is read."""


def worded(steps: Sequence[str], languages: Sequence[Language]) -> str:
    """Steps such as `3-2=1` as one line of words. languages: of each step with the joint before it."""
    said = [
        step.replace("=", f" {EQUALS[language]} ")
        for step, language in zip(steps, languages, strict=True)
    ]
    joined = [
        f"{JOINTS[i % len(JOINTS)][language]} {step}"
        for i, (step, language) in enumerate(zip(said[1:], languages[1:], strict=True))
    ]
    return ", ".join([*said[:1], *joined])


def drawn_languages(rng: random.Random, count: int) -> list[Language]:
    """A language for each of so many steps: one of both, now and then changed."""
    found = [rng.choice(LANGUAGES)]
    while len(found) < count:
        found.append(found[-1] if rng.random() < STAYS else _other(found[-1]))
    return found[:count]


def reworded(thought: str, language: Language) -> str | None:
    """The same thought with its small words in one language; None where it is not steps as they are taught.

    What was calculated is not looked at, and stays as it is. A bare calculation has nothing to reword.
    """
    if len(thought) > MAX_CHARS or not _THOUGHT.fullmatch(thought):
        return None
    return _SMALL.sub(lambda found: _TRANSLATED[found.group()][language], thought)


def _other(language: Language) -> Language:
    return next(one for one in LANGUAGES if one != language)
