"""Where one JSON value ends in text that comes piece by piece. Imports no torch."""


class JsonEnd:
    """Counts brackets and quotes, no more: text that is no JSON ends somewhere too, or nowhere."""

    def __init__(self) -> None:
        self.is_done = False
        self.in_string = False
        self._depth = 0
        self._is_escaped = False
        self._is_scalar = False

    def feed(self, text: str) -> int:
        """How many of the characters are the value's, from the first that is no blank on."""
        for place, char in enumerate(text):
            if self.in_string:
                self._string(char)
            elif self._is_scalar and (char in ",]}" or char.isspace()):
                self.is_done = True
                return place
            elif char == '"' and not self._is_scalar:
                self.in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                self.is_done = self._depth <= 0
            elif self._depth == 0 and not char.isspace():
                self._is_scalar = True
            if self.is_done:
                return place + 1
        return len(text)

    def _string(self, char: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self.in_string = False
            self.is_done = self._depth == 0
