"""What a model draws, read into thought, answer and calls: one state machine for stream and non-stream.

Imports no torch.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from nalar.server.ask import Piece, TokenLogprob, ToolSpec
from nalar.server.dialects.calls import CallBody, Part, body_of
from nalar.server.dialects.mark_table import MarkTable, Role
from nalar.server.dialects.text import Ends, Marks, Pending

_MOST_HELD = 64
"""Blanks that wait for what follows them."""


class Bytes(Protocol):
    def token_bytes(self, token_id: int) -> bytes: ...


@dataclass(frozen=True)
class Prompt:
    """What the model is asked, and where that leaves the reader of its reply."""

    ids: tuple[int, ...]
    opens_thought: bool
    """The model goes on inside a thought."""
    may_think: bool
    """Or may begin one."""
    tools: tuple[ToolSpec, ...] = ()
    num_calls: int = 0
    """Calls in the conversation so far."""


def random_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class Reader:
    """Reads one choice: ids in, pieces out, any number of ids at once.

    Text comes as soon as it can be part of no mark and of no stop string. Marks never become text, wherever they stand.
    A call that was cut has no piece call_end. Stop strings end the answer; thoughts and calls may hold them.
    """

    def __init__(
        self,
        table: MarkTable,
        tokenizer: Bytes,
        prompt: Prompt,
        *,
        with_tools: bool,
        stop: Sequence[str] = (),
        choice: int = 0,
        make_id: Callable[[], str] = random_id,
    ) -> None:
        """with_tools: False: what stands in a call is text like any other."""
        self._table, self._family, self._tokenizer = table, table.family, tokenizer
        self._prompt, self._choice, self._make_id = prompt, choice, make_id
        self._tools = {tool.name: tool for tool in prompt.tools}
        self._stop = tuple(filter(None, stop))
        self._calls = table.family.calls if with_tools else None
        self._pending = Pending()
        self._marks_of: dict[tuple[str, bool, bool], Marks] = {}
        self._part: Literal["thought", "answer", "after"] = (
            "thought" if prompt.opens_thought else "answer"
        )
        self._is_fresh = not prompt.opens_thought and prompt.may_think
        """Nothing was said yet, so a thought may begin whose mark is text."""
        self._skips = prompt.opens_thought
        """Padding that comes now is the template's."""
        self._body: CallBody | None = None
        self._in_section = self._after_call = False
        self._awaits_output = self._in_output = False
        self._unsaid: list[Ends] = []
        """Ids of a call of which no piece has come yet."""
        self.num_thought_tokens = 0
        """Those of calls in a thought included, marks not."""
        self.num_calls = 0
        """That began."""
        self.stopped: str | None = None
        """The stop string that was found."""

    def feed(self, ids: Sequence[int], logprobs: Sequence[TokenLogprob] = ()) -> list[Piece]:
        """logprobs: none, or one for each id."""
        pieces: list[Piece] = []
        if text := self._plain_text(ids):
            self._skips = self._after_call = False
            self._text(text, (tuple(ids), tuple(logprobs)), pieces)
            return pieces
        for place, token_id in enumerate(ids):
            role = self._table.of_id.get(token_id)
            if role is None:
                written = self._tokenizer.token_bytes(token_id)
                self._pending.add(token_id, written, logprobs[place] if logprobs else None)
            else:
                self._drain(pieces)  # what a mark does may hang on the text before it
                self._special(token_id, role, pieces)
        self._drain(pieces)
        return _joined(pieces)

    def _plain_text(self, ids: Sequence[int]) -> str:
        """Of ids that can be said as they come, as most can: nothing waits, and nothing in them may mean anything.
        Empty: they want a closer look."""
        padding = self._family.padding
        is_open = self._part != "after" and self._body is None and not self._in_output
        is_padded = self._in_section or self._is_fresh or (self._skips and padding)
        if not is_open or is_padded or not self._pending.is_empty:
            return ""
        if not self._table.of_id.keys().isdisjoint(ids):
            return ""
        try:
            text = b"".join(map(self._tokenizer.token_bytes, ids)).decode()
        except UnicodeDecodeError:
            return ""
        if text[-1:] in padding or self._marks().may_begin(text):
            return ""
        return text

    def _special(self, token_id: int, role: Role, pieces: list[Piece]) -> None:
        if role == "inner" and self._body is not None:
            self._drain(pieces, is_all=True)
            self._call_parts(self._body.feed(self._table.inner[token_id])[0], pieces)
        elif self._acts(role):
            self._pending.complete()
            self._drain(pieces, before=role, is_all=True)
            self._mark(role, pieces)
        elif role not in ("drop", "think", "end_think"):
            self._pending.complete()  # no character goes on behind a mark of a call

    def finish(self, *, cut: bool) -> list[Piece]:
        """The rest. Cut: the model did not end its turn itself, so a call that is open was not all written."""
        pieces: list[Piece] = []
        self._pending.complete()
        self._drain(pieces, is_all=True)
        self._end_body(pieces, cut=cut or self._needs_end)
        self._part = "after"
        return _joined(pieces)

    @property
    def _needs_end(self) -> bool:
        """Only its mark ends a call: one of our own has no other way to be known as whole."""
        return self._calls is not None and self._calls.form == "bare"

    def _drain(
        self, pieces: list[Piece], *, before: Role | None = None, is_all: bool = False
    ) -> None:
        """Say what can be said. before: the mark that follows. is_all: nothing of the text is held back for one."""
        while self._part != "after" and (found := self._marks().find_first(self._pending.text)):
            place, mark = found
            if not is_all and self._marks().num_safe(self._pending.text) < place:
                break  # a longer one may have begun before it
            role = None if mark in self._stop else self._table.of_text[mark]
            if self._body is not None:
                if not self._say_in_call(place, pieces):
                    continue  # other marks count behind it
                if self._body.is_inside:
                    self._say_in_call(len(mark), pieces)
                    continue
            elif role == "think" and not self._counts_behind(mark, place):
                self._say(place, pieces)  # the answer has begun before it
                continue
            else:
                self._say(place, pieces, is_all=True, is_last=role is None)
            self._pending.take(len(mark))
            if role is None:
                self.stopped, self._part = mark, "after"
            elif self._acts(role, is_text=True):
                self._mark(role, pieces)
        text = self._pending.text
        size = len(text) if is_all or self._part == "after" else self._marks().num_safe(text)
        if self._body is None:
            self._say(size, pieces, is_all=is_all, is_last=is_all and before in (None, "end"))
            return
        if not self._say_in_call(size, pieces):
            self._drain(pieces, before=before, is_all=is_all)

    def _marks(self) -> Marks:
        """Marks over several tokens, and stop strings, that count here."""
        state = self._part, self._body is None, self._is_fresh
        if state not in self._marks_of:
            marks = [mark for mark, role in self._table.of_text.items() if self._counts(mark, role)]
            stops = self._stop if self._part == "answer" and self._body is None else ()
            self._marks_of[state] = Marks([*marks, *stops])
        return self._marks_of[state]

    def _counts(self, mark: str, role: Role) -> bool:
        """Tags count wherever they stand, if only to be dropped; a sentence where it has a meaning."""
        if self._body is not None:
            return role in ("end_call", "end_section")
        if role in ("think", "end_think"):
            return mark.startswith("<") or self._acts(role, is_text=True)
        return role == "drop" or self._calls is not None

    def _counts_behind(self, mark: str, num_chars: int) -> bool:
        return mark.startswith("<") or not self._pending.text[:num_chars].strip()

    def _acts(self, role: Role, *, is_text: bool = False) -> bool:
        """Whether a mark changes anything here; else it is a stray one, and dropped."""
        if self._part == "after" or role in ("drop", "inner"):
            return False
        if role == "end":
            return True
        if self._in_output:
            return role == "end_output"
        if self._body is not None:
            is_next = role in ("call", "end_think") and self._body.is_complete
            return role in ("end_call", "end_section") or is_next
        if role == "think":
            may_begin = self._is_fresh or (self._family.rethinks and not is_text)
            return self._part == "answer" and may_begin
        if role == "end_think":
            return self._part == "thought"
        if role == "output":
            return self._awaits_output
        return self._calls is not None and role in ("section", "end_section", "call")

    def _mark(self, role: Role, pieces: list[Piece]) -> None:
        """A mark that acts, all text before it being said."""
        if self._body is not None:
            self._end_body(pieces, cut=role == "end" and self._needs_end)
        match role:
            case "end":
                self._part = "after"
            case "think":
                self._part, self._skips, self._is_fresh = "thought", True, False
            case "end_think":
                self._part, self._skips = "answer", True
            case "section" | "end_section":
                self._in_section, self._is_fresh = role == "section", False
            case "call" if self._calls is not None:
                if self._part == "thought" and not self.num_thought_tokens:
                    # There is a thought, if an empty one: a history must say so, or the next prompt closes it.
                    pieces.append(Piece(self._choice, "thought"))
                self._body, self._is_fresh = body_of(self._calls, self._tools), False
            case "output" | "end_output":
                self._in_output, self._awaits_output = role == "output", False

    def _end_body(self, pieces: list[Piece], *, cut: bool) -> None:
        if self._body is not None:
            body, self._body = self._body, None
            self._after_call = True
            self._call_parts(body.close(cut=cut), pieces)

    def _say(
        self,
        size: int,
        pieces: list[Piece],
        *,
        is_all: bool = False,
        is_last: bool = False,
    ) -> None:
        """Give out the first characters of what is pending. is_all: padding at their end waits for nothing more: it is
        dropped, or said where is_last, the answer being over."""
        if self._part == "after" or self._in_output:
            self._pending.take(size)
            return
        text = self._pending.text[:size]
        if self._skips and self._family.padding:
            skipped = len(text) - len(text.lstrip(self._family.padding))
            self._pending.take(skipped)
            text = text[skipped:]
        kept = self._num_kept(text, is_last=is_last)
        said, ends = self._pending.take(kept)
        if is_all:
            self._pending.take(len(text) - kept)
        if said:
            self._skips = self._after_call = False
            self._is_fresh = self._is_fresh and not said.strip()
            self._text(said, ends, pieces)

    def _say_in_call(self, size: int, pieces: list[Piece]) -> bool:
        """But for what stands behind a call that ends without a mark. Whether the call goes on."""
        assert self._body is not None
        parts, left = self._body.feed(self._pending.text[:size])
        _, ends = self._pending.take(size - left)
        self._unsaid.append(ends)
        self._count(ends)
        self._call_parts(parts, pieces)
        is_over = self._body.is_over
        if is_over:
            self._end_body(pieces, cut=False)
        return not is_over

    def _num_kept(self, text: str, *, is_last: bool) -> int:
        """How many characters are said now: padding at the end waits for what follows it."""
        blanks = None if self._in_section or self._is_fresh else self._family.padding
        if blanks == "":
            return len(text)
        solid = max(len(text.rstrip(blanks)), len(text) - _MOST_HELD)
        is_between = self._in_section or (self._after_call and not solid)
        return len(text) if is_last and self._part == "answer" and not is_between else solid

    def _text(self, text: str, ends: Ends, pieces: list[Piece]) -> None:
        kind: Literal["thought", "answer"] = "thought" if self._part == "thought" else "answer"
        self._count(ends)
        pieces.append(Piece(self._choice, kind, text, token_ids=ends[0], logprobs=ends[1]))

    def _count(self, ends: Ends) -> None:
        if self._part == "thought":
            self.num_thought_tokens += len(ends[0])

    def _call_parts(self, parts: Sequence[Part], pieces: list[Piece]) -> None:
        for kind, text in parts:
            if kind == "text":
                if text.strip():  # a call that is none
                    self._text(text, ((), ()), pieces)
                continue
            call_id = name = ""
            if kind == "call":
                call_id, name = self._identified(text)
                self.num_calls += 1
            self._awaits_output = kind == "end" and self._family.output is not None
            ids = tuple(i for ends in self._unsaid for i in ends[0])
            logprobs = tuple(one for ends in self._unsaid for one in ends[1])
            self._unsaid = []
            pieces.append(
                Piece(
                    self._choice,
                    "call_end" if kind == "end" else kind,
                    text if kind == "arguments" else "",
                    self.num_calls - 1,
                    call_id,
                    name,
                    ids,
                    logprobs,
                )
            )

    def _identified(self, header: str) -> tuple[str, str]:
        """Id and name of a call that begins."""
        if self._family.call_id != "kimi":
            return self._make_id(), header
        whole = header.removeprefix("functions.")
        name, _, number = whole.rpartition(":")
        if not name or not number.isdecimal():
            name, number = whole, str(self._prompt.num_calls + self.num_calls)
        return f"functions.{name}:{number}", name


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind as one."""
    if len(pieces) < 2:
        return list(pieces)
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        is_more = last is not None and (last.kind, last.call) == (piece.kind, piece.call)
        if last is None or not is_more or piece.kind in ("call", "call_end"):
            joined.append(piece)
            continue
        joined[-1] = last._replace(
            text=last.text + piece.text,
            token_ids=last.token_ids + piece.token_ids,
            logprobs=last.logprobs + piece.logprobs,
        )
    return joined
