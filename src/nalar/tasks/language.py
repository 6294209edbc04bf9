"""Which language a text is in, as far as its small words tell, and whether a thought can be read in one of them."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Literal, get_args

Language = Literal["en", "id"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

_WORDS: Mapping[Language, str] = {
    "en": """the of and is it that for are was with as this have from or by not we they you he she but what so if can
    will then which there their has each when how would must into only because does did been its our your his her
    these those than let now also after before both since still every where who why could should about""",
    "id": """yang dan di ke dari untuk dengan pada adalah ini itu tidak akan jadi karena maka atau juga kita saya kami
    mereka dia ada lebih sudah dalam sebagai oleh bisa harus dapat lalu kemudian sehingga setiap semua antara jika
    kalau tetapi namun berapa lagi masih hanya bukan agar seperti telah belum sampai tentang bahwa ialah kepada""",
}
FUNCTION_WORDS: Mapping[str, Language] = {
    word: language for language, words in _WORDS.items() for word in words.split()
}
"""None of them is a word of both languages."""
MAX_CHARS = 20_000
"""Of a text, from its beginning, that are read."""
MIN_WORDS = 3
"""Fewer small words say nothing."""
_SAME_WORD = 3
"""Times that one word counts at most, so that repeating it buys nothing."""
_FOREIGN = 4
"""Letters of other scripts that weigh as much as one small word."""
READABLE_SHARE = 0.9
"""Of the small words that are of one language, where a text is in one throughout."""
LONGEST_PERIOD = 80
"""Characters of what a text may repeat at its end, at most."""
TIMES = 4
"""How often it must stand there, one after another, and fill 16 characters."""
_BROKEN = "\ufffd"
"""What bytes become that are no text."""
_GREEK = re.compile(r"[\u0370-\u03ff]")
"""Letters of formulas, in every language."""
_LATIN = re.compile(r"[a-z\u00c0-\u024f]+")


def share_of(language: Language, text: str) -> float:
    """Share of a text's small words that are of `language`; letters of other scripts count against it.

    1 where there is nothing to tell by, such as in bare calculations.
    """
    own, other = _counts(language, text)
    return own / (own + other) if own + other >= MIN_WORDS else 1.0


def language_of(text: str) -> Language:
    """The one that more of its small words are of; English where they do not tell."""
    return max(LANGUAGES, key=lambda language: share_of(language, text))


def says_language(text: str) -> bool:
    """Whether a text has small words enough to tell a language by."""
    return sum(_counts(LANGUAGES[0], text)) >= MIN_WORDS


def is_readable(text: str, language: Language | None = None) -> bool:
    """Whether a text is in one language throughout, whole letters, and does not end in a loop.

    language: which one it must be; None: any. A bare calculation can be read in every language.
    """
    shown = _GREEK.sub("", text[:MAX_CHARS].lower())
    if _BROKEN in shown or any(c.isalpha() for c in _LATIN.sub("", shown)):
        return False
    share = share_of(language or language_of(text), text)
    return share >= READABLE_SHARE and not loops(text)


def loops(text: str) -> bool:
    """Whether a text ends in one stretch of up to 80 characters, four times; a single character sixteen times."""
    for period in range(1, LONGEST_PERIOD + 1):
        times = max(TIMES, -(-16 // period))
        if len(text) >= period * times and text.endswith(text[-period:] * times):
            return True
    return False


def _counts(language: Language, text: str) -> tuple[int, int]:
    """Small words of a language, and of others with what weighs like them."""
    lowered = text[:MAX_CHARS].lower()
    counts = Counter(word for word in _LATIN.findall(lowered) if word in FUNCTION_WORDS)
    own = other = 0
    for word, count in counts.items():
        capped = min(count, _SAME_WORD)
        if FUNCTION_WORDS[word] == language:
            own += capped
        else:
            other += capped
    other += sum(c.isalpha() for c in _LATIN.sub("", lowered)) // _FOREIGN
    return own, other
