"""Texts of users inside a template, so that no part of them can be taken for a special token. Imports no torch."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from nalar.config import UserError

_STAND_INS = range(0xF0000, 0xFFFFE)
"""Characters for private use: no text means anything by them."""
_HALVES = re.compile("[\ud800-\udfff]")
_SCHEMA_WORDS = frozenset(
    [
        "additionalProperties",
        "allOf",
        "anyOf",
        "arguments",
        "array",
        "boolean",
        "const",
        "default",
        "description",
        "enum",
        "examples",
        "format",
        "function",
        "integer",
        "items",
        "maximum",
        "maxItems",
        "maxLength",
        "minimum",
        "minItems",
        "minLength",
        "name",
        "not",
        "null",
        "number",
        "object",
        "oneOf",
        "parameters",
        "pattern",
        "properties",
        "required",
        "strict",
        "string",
        "title",
        "type",
    ]
)
"""What templates look for in tools."""
_SIGNS = "<>|｜[]/_▁ "


class Veil:
    """Replaces characters one for one, so that lengths, blanks and all other characters are what they were.

    A special token can be completed neither by the beginning nor by the end of a text, nor from the middle: its first
    and last characters are replaced wherever they stand, and so is the first character of a text that is, as a whole,
    part of a special token. Words of JSON schema stay, but for those that are a special token's only word.
    """

    def __init__(self, special: Collection[str], texts: Iterable[str]) -> None:
        """texts: all that there is, none of whose characters is taken as a stand-in."""
        used = set().union(*texts)
        self._free = (char for char in map(chr, _STAND_INS) if char not in used)
        self._folded = [text.casefold() for text in special]
        self._longest = max(map(len, special), default=0)
        self._words = _SCHEMA_WORDS - {text.strip(_SIGNS) for text in special}
        self._edges = {c: self._stand_in() for text in special for c in {text[0], text[-1]}}
        self._firsts: dict[str, str] = {}
        """Stand-ins of first characters of texts that are part of a special token."""
        self._shown: dict[int, str] = {ord(s): c for c, s in self._edges.items()}
        self._edge_table = str.maketrans(self._edges)
        self.tag = self._stand_in()
        """A character of our own, for a place to find again."""

    def _stand_in(self) -> str:
        found = next(self._free, None)
        if found is None:
            raise UserError(
                at="messages",
                got="every character for private use",
                want="texts that leave some of plane 15 unused",
            )
        return found

    def hide(self, text: str) -> str:
        hidden = text.translate(self._edge_table)
        core = text.strip()
        if hidden == text and text not in self._words and self._is_part(core):
            first = len(text) - len(text.lstrip())
            hidden = text[:first] + self._first(text[first]) + text[first + 1 :]
        return hidden

    def _first(self, char: str) -> str:
        """One a character, however many texts begin with it."""
        if char not in self._firsts:
            stand_in = self._firsts[char] = self._stand_in()
            self._shown[ord(stand_in)] = char
        return self._firsts[char]

    def _is_part(self, core: str) -> bool:
        """Of a special token, in whatever case: templates change it."""
        if not 0 < len(core) <= self._longest:
            return False
        folded = core.casefold()
        return any(folded in text for text in self._folded)

    def show(self, text: str) -> str:
        """What was hidden, as it was."""
        return text.translate(self._shown)

    def hides_in(self, text: str) -> bool:
        return text.translate(self._shown) != text

    def hide_all(self, value: Any) -> Any:
        """Of texts in lists and objects, keys included."""
        return _mapped(value, self.hide)

    def show_all(self, value: Any) -> Any:
        return _mapped(value, self.show)


def _mapped(value: Any, text: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        return {text(str(k)): _mapped(v, text) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(one, text) for one in value]
    return value


def texts_in(value: Any) -> Iterable[str]:
    """All texts in lists and objects, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for k, v in value.items():
            yield str(k)
            yield from texts_in(v)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts_in(one)


def whole(value: Any) -> Any:
    """Halves of surrogate pairs, which no tokenizer takes, become U+FFFD."""
    return _mapped(value, _whole)


def _whole(text: str) -> str:
    return _HALVES.sub("\ufffd", text)
