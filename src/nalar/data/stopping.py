"""Stop strings over ids: where a text ends, found as its tokens come. Imports no torch."""

import codecs
from collections.abc import Sequence
from typing import Protocol

from nalar.config import UserError


class Tokens(Protocol):
    """A tokenizer, as far as it is needed here."""

    special_ids: frozenset[int]

    def token_bytes(self, token_id: int) -> bytes: ...


class StopStrings:
    """Looks at the newest ids of an output, as many as a stop string can span: nothing is kept, nothing read twice.

    Strings are compared as bytes, so tokens may cut them, and their characters, anywhere. Special ids are not text and
    belong to no stop string: none reaches from a thought into the answer. An instance suits all samples of a request.
    """

    def __init__(self, tokenizer: Tokens, strings: Sequence[str]) -> None:
        if not strings or not all(strings):
            raise UserError(
                at="stop", got=repr(list(strings)), want="at least one string, none of them empty"
            )
        self._tokenizer = tokenizer
        self._strings = tuple(dict.fromkeys(string.encode() for string in strings))
        self._longest = max(map(len, self._strings))

    def __call__(self, ids: Sequence[int]) -> bool:
        """Whether the newest id completes a stop string: `Request.stop_matcher`."""
        return self.num_cut(ids) > 0

    def num_cut(self, ids: Sequence[int]) -> int:
        """Characters to take off the end of the text when the newest id is the last: the stop string that it completed
        and what came with it. 0: none was.
        """
        tail, newest = self._tail(ids, self._longest - 1)
        places = [tail.find(s, max(0, newest - len(s) + 1)) for s in self._strings]
        found = [place for place in places if place >= 0]
        # What is left of a character that is cut short counts: the end of a text makes U+FFFD of it.
        return len(tail[min(found) :].decode("utf-8", errors="replace")) if found else 0

    def num_held(self, ids: Sequence[int]) -> int:
        """Characters at the end of the text that may turn out to begin a stop string, while more ids are to come.

        An incomplete character is not counted, since it is not in the text yet.
        """
        tail, _ = self._tail(ids, self._longest - 1)
        for start in range(max(0, len(tail) - self._longest + 1), len(tail)):
            if any(s.startswith(tail[start:]) for s in self._strings):
                return len(codecs.getincrementaldecoder("utf-8")("replace").decode(tail[start:]))
        return 0

    def _tail(self, ids: Sequence[int], before: int) -> tuple[bytes, int]:
        """The bytes of the newest id and at least this many before it, if there are; and where the newest begins."""
        pieces: list[bytes] = []
        num_bytes = 0
        for token_id in reversed(ids):
            if token_id in self._tokenizer.special_ids:
                break
            pieces.append(self._tokenizer.token_bytes(token_id))
            num_bytes += len(pieces[-1])
            if num_bytes - len(pieces[0]) >= before:
                break
        return b"".join(reversed(pieces)), num_bytes - (len(pieces[0]) if pieces else 0)
