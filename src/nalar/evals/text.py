"""Text that came from a model, made safe to show."""

import unicodedata

_KEPT = "\n"
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories of characters that steer a terminal or a page and show nothing."""


def printable(text: str) -> str:
    """Characters that act on a screen instead of showing (escape codes, direction marks) become a replacement mark."""
    return "".join(
        char
        if char in _KEPT or unicodedata.category(char) not in _UNSEEN
        else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )
