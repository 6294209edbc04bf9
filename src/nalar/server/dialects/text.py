"""Ids to text, as much of it as is complete, and which ids end where. Imports no torch."""

import codecs
from collections import deque
from collections.abc import Iterable

from nalar.server.ask import TokenLogprob

Ends = tuple[tuple[int, ...], tuple[TokenLogprob, ...]]
"""Ids that end in a text that was taken, and their logprobs where there are any."""


class Pending:
    """Text that was drawn and not yet said. Never half a character."""

    def __init__(self) -> None:
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open: list[tuple[int, TokenLogprob | None]] = []
        """Ids that end in a character which is not complete."""
        self._ends: deque[tuple[int, int, TokenLogprob | None]] = deque()
        """Place in all text behind which an id ends, the id, its logprob."""
        self._taken = 0

    @property
    def is_empty(self) -> bool:
        """Neither text nor ids wait."""
        return not (self.text or self._open or self._ends)

    def add(self, token_id: int, written: bytes, logprob: TokenLogprob | None) -> None:
        self.text += self._decoder.decode(written)
        self._open.append((token_id, logprob))
        if not self._decoder.getstate()[0]:
            self._settle()

    def complete(self) -> None:
        """No more bytes follow: U+FFFD for a character left incomplete."""
        self.text += self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._settle()

    def take(self, num_chars: int) -> tuple[str, Ends]:
        """The first characters, and the ids that end among them."""
        text, self.text = self.text[:num_chars], self.text[num_chars:]
        self._taken += num_chars
        ids, logprobs = list[int](), list[TokenLogprob]()
        while self._ends and self._ends[0][0] <= self._taken:
            _, token_id, logprob = self._ends.popleft()
            ids.append(token_id)
            if logprob is not None:
                logprobs.append(logprob)
        return text, (tuple(ids), tuple(logprobs))

    def _settle(self) -> None:
        end = self._taken + len(self.text)
        self._ends.extend((end, token_id, logprob) for token_id, logprob in self._open)
        self._open.clear()


class Until:
    """Text up to a mark, each character looked at once."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._parts: list[str] = []
        self._tail = ""

    def feed(self, text: str) -> tuple[str, str] | None:
        """What stands before the mark and what behind it, once it is there."""
        self._tail += text
        before, mark, behind = self._tail.partition(self._mark)
        if mark:
            return "".join([*self._parts, before]), behind
        size = max(0, len(self._tail) - len(self._mark) + 1)
        self._parts.append(self._tail[:size])
        self._tail = self._tail[size:]
        return None

    @property
    def text(self) -> str:
        """All so far."""
        return "".join([*self._parts, self._tail])


class Marks:
    """Texts to look for."""

    def __init__(self, marks: Iterable[str]) -> None:
        self._marks = tuple(marks)
        self._firsts = {mark[0] for mark in self._marks}

    def may_begin(self, text: str) -> bool:
        """Whether a sign in it is the first of any."""
        return not self._firsts.isdisjoint(text)

    def find_first(self, text: str) -> tuple[int, str] | None:
        """Where the first of the marks stands, the longest of those that begin there."""
        if not self.may_begin(text):
            return None
        return find_first(text, self._marks)

    def num_safe(self, text: str) -> int:
        """Characters of a text that holds no mark which are part of none, whatever follows."""
        if not self.may_begin(text):
            return len(text)
        return num_safe(text, self._marks)


def find_first(text: str, marks: Iterable[str]) -> tuple[int, str] | None:
    """Where the first of the marks stands, the longest of those that begin there."""
    found = [(place, -len(mark), mark) for mark in marks if (place := text.find(mark)) >= 0]
    if not found:
        return None
    place, _, mark = min(found)
    return place, mark


def num_safe(text: str, marks: Iterable[str]) -> int:
    """Characters of a text that holds no mark which are part of none, whatever follows."""
    return len(text) - max((_overlap(text, mark) for mark in marks), default=0)


def _overlap(text: str, mark: str) -> int:
    """The longest end of a text that is a beginning of the mark, and not all of it."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0
