"""What a JSON text says: its escapes are undone as it comes. Imports no torch."""

import re

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(u[0-9a-fA-F]{0,3}\Z|\Z)|(.))", re.DOTALL)
_SIGNS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class JsonText:
    """Pieces of one JSON text in, its characters out; what may be half an escape waits for the next piece.

    Quotes, brackets and what is no JSON stay as they are.
    """

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> str:
        text = self._rest + text
        self._rest, parts, at = "", list[str](), 0
        for found in _ESCAPE.finditer(text):
            code, half, sign = found.groups()
            parts.append(text[at : found.start()])
            at = found.end()
            if half is not None:
                self._rest = found[0]
            else:
                parts.append(chr(int(code, 16)) if code else _SIGNS.get(sign, sign))
        told = "".join([*parts, text[at:]])
        if told and "\ud800" <= told[-1] <= "\udbff":  # its other half follows
            self._rest = f"\\u{ord(told[-1]):04x}{self._rest}"
            told = told[:-1]
        return told.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
