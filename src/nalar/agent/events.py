"""A stream of chat completion chunks: bytes to events, events to pieces and to the whole turn. Imports no torch."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nalar.agent.speech import Call, Piece, Turn, Usage
from nalar.config import UserError

MAX_EVENT_BYTES = 4_000_000
MAX_TURN_CHARS = 20_000_000
"""Of thought, answer and arguments together."""
MAX_CALLS = 1000
"""In one turn."""


def events(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON object of each `data:` line until `[DONE]`; comments and other fields of server-sent events are skipped.

    Lines end by a line feed alone: JSON may hold any other sign that Python would take for a line's end.
    """
    read = b""
    for chunk in chunks:
        read += chunk
        *lines, read = read.split(b"\n")
        if len(read) > MAX_EVENT_BYTES:
            raise _no_event("a line without an end")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield _object(data)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _no_event(repr(data[:80].decode("utf-8", "replace")))
    return found


def _no_event(got: str) -> UserError:
    return UserError(at="the server's stream", got=got, want="chunks of a chat completion")


def read_error(body: bytes) -> tuple[str, str]:
    """The message and the code of an error, in OpenAI's form or whatever else came."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        inner = found["error"] if isinstance(found.get("error"), dict) else found
        message = inner.get("message") or found.get("error") or found.get("detail")
        if isinstance(message, str):
            return message[:2000], str(inner.get("code") or "")
    return body[:200].decode("utf-8", "replace").strip() or "nothing", ""


class _Begun:
    """One call as it comes."""

    def __init__(self) -> None:
        self.id, self.name, self.arguments = "", "", list[str]()


class Folded:
    """Takes the chunks of one turn in, and holds what it came to."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {"thought": [], "answer": []}
        self._calls: dict[int, _Begun] = {}
        self._finish_reason: str | None = None
        self._usage = Usage()
        self._chars = 0
        self.has_begun = False

    @property
    def is_ended(self) -> bool:
        """The server said why it stopped."""
        return self._finish_reason is not None

    def take(self, event: Mapping[str, Any]) -> Iterator[Piece]:
        """Pieces of one chunk. UserError where it has not the form of one."""
        try:
            yield from self._take(event)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise _no_event(f"a chunk of another form ({type(error).__name__})") from error

    def _take(self, event: Mapping[str, Any]) -> Iterator[Piece]:
        if event.get("usage"):
            self._usage = _usage(event["usage"])
        for choice in event.get("choices") or ():
            if choice.get("index", 0) != 0:
                continue
            delta = choice.get("delta") or {}
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            for kind, text in (("thought", thought), ("answer", delta.get("content"))):
                if text:
                    yield self._text(kind, text)
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            if choice.get("finish_reason") is not None:
                self._finish_reason = str(choice["finish_reason"])

    def _text(self, kind: Any, text: str) -> Piece:
        self._count(text)
        self._texts[kind].append(text)
        return Piece(kind, text)

    def _call(self, delta: Mapping[str, Any]) -> Iterator[Piece]:
        """The first piece of a call has its id and name, those behind it arguments alone."""
        index = int(delta.get("index", 0))
        if index not in self._calls and len(self._calls) >= MAX_CALLS:
            raise _no_event(f"more than {MAX_CALLS} calls")
        begun = self._calls.setdefault(index, _Begun())
        function = delta.get("function") or {}
        begun.id = delta.get("id") or begun.id
        if name := function.get("name"):
            self._count(name)
            begun.name += name
            yield Piece("call", name)
        if arguments := function.get("arguments"):
            self._count(arguments)
            begun.arguments.append(arguments)
            yield Piece("arguments", arguments)

    def _count(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError
        self.has_begun = True
        self._chars += len(text)
        if self._chars > MAX_TURN_CHARS:
            raise _no_event(f"more than {MAX_TURN_CHARS} characters")

    def turn(self) -> Turn:
        """Calls that were cut are left out: what they ask is not known."""
        reason = self._finish_reason or "length"
        calls = [
            Call(str(begun.id) or f"call_{i}", begun.name, "".join(begun.arguments))
            for i, begun in sorted(self._calls.items())
        ]
        return Turn(
            thought="".join(self._texts["thought"]),
            answer="".join(self._texts["answer"]),
            calls=() if reason in ("length", "content_filter") else tuple(calls),
            finish_reason=reason,
            usage=self._usage,
        )


def _usage(found: Mapping[str, Any]) -> Usage:
    read = found.get("prompt_tokens_details") or {}
    written = found.get("completion_tokens_details") or {}
    cost = found.get("cost")
    prompt = int(found.get("prompt_tokens") or 0)
    cached = int(read.get("cached_tokens") or found.get("prompt_cache_hit_tokens") or 0)
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=min(cached, prompt),
        completion_tokens=int(found.get("completion_tokens") or 0),
        reasoning_tokens=int(written.get("reasoning_tokens") or found.get("reasoning_tokens") or 0),
        cost_usd=float(cost) if isinstance(cost, (int, float)) else None,
    )
