"""`/v1/responses`: what is said, as items and their events; the whole reply is what the last event holds.

Imports no torch.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nalar.server.ask import Ended, Piece, Said, Usage
from nalar.server.wire.chat import Bytes, logprob_json
from nalar.server.wire.errors import ApiError
from nalar.server.wire.responses import ResponsesRequest

Event = dict[str, Any]
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass
class _Item:
    """One item of the output, on its way."""

    kind: Literal["reasoning", "message", "function_call"]
    id: str
    index: int
    call_id: str = ""
    name: str = ""
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def document(self, status: str, part: Mapping[str, Any] | None, place: str) -> dict[str, Any]:
        """part: its one part, None before there is one. place: where the parts of a thought are."""
        head: dict[str, Any] = {"id": self.id, "type": self.kind, "status": status}
        if self.kind == "function_call":
            call = {"call_id": self.call_id, "name": self.name, "arguments": "".join(self.texts)}
            return head | call
        parts = [] if part is None else [dict(part)]
        if self.kind == "message":
            return head | {"role": "assistant", "content": parts}
        return head | {"summary": [], "content": []} | {place: parts}


class ResponseWriter:
    """One reply. Feed it all that is said, in order."""

    def __init__(
        self, response_id: str, created: int, model: str, text: Bytes, asked: ResponsesRequest
    ) -> None:
        self._id, self._created, self._model = response_id, created, model
        self._text, self._asked = text, asked
        self._place = "summary" if asked.wants_summary else "content"
        self._output: list[dict[str, Any]] = []
        self._open: _Item | None = None
        self._num_events = 0
        self._reason = "stop"

    def opening(self) -> Iterator[Event]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response("in_progress"))

    def events(self, said: Said) -> Iterator[Event]:
        if isinstance(said, Piece):
            yield from self._piece(said)
        elif isinstance(said, Ended):
            self._reason = said.finish_reason
            is_whole = said.finish_reason not in _INCOMPLETE
            yield from self._close(is_whole)
            if is_whole and all(item["type"] == "reasoning" for item in self._output):
                yield from self._begin("message")  # clients look for one, if an empty one
                yield from self._close(True)
        elif isinstance(said, Usage):
            status = "incomplete" if self._reason in _INCOMPLETE else "completed"
            yield self._event(f"response.{status}", response=self._response(status, said))

    def failed(self, error: ApiError) -> Event:
        """The last event of a reply that breaks."""
        code = {429: "rate_limit_exceeded"}.get(error.status, "server_error")
        failure = {"code": code, "message": error.message}
        response = self._response("failed") | {"error": failure}
        return self._event("response.failed", response=response)

    def _piece(self, piece: Piece) -> Iterator[Event]:
        match piece.kind:
            case "thought":
                yield from self._say("reasoning", piece)
            case "answer":
                yield from self._say("message", piece)
            case "call":
                yield from self._begin("function_call", piece.call_id, piece.name)
            case "arguments":
                yield from self._delta(piece.text)
            case "call_end":
                yield from self._close(True)

    def _say(self, kind: Literal["reasoning", "message"], piece: Piece) -> Iterator[Event]:
        logprobs = []
        if kind == "message" and self._asked.with_logprobs:
            logprobs = [logprob_json(one, self._text) for one in piece.logprobs]
        has_news = bool(piece.text or logprobs)
        if not has_news and kind == "message":
            return
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind)
        if has_news:
            yield from self._delta(piece.text, logprobs)

    def _begin(
        self,
        kind: Literal["reasoning", "message", "function_call"],
        call_id: str = "",
        name: str = "",
    ) -> Iterator[Event]:
        yield from self._close(True)
        index = len(self._output)
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        item_id = f"{prefix}_{self._id.removeprefix('resp_')}_{index}"
        item = self._open = _Item(kind, item_id, index, call_id, name)
        document = item.document("in_progress", None, self._place)
        yield self._event("response.output_item.added", output_index=index, item=document)
        if kind != "function_call":
            yield self._of_part(item, "added", part=self._part(item))

    def _delta(self, text: str, logprobs: list[dict[str, Any]] | None = None) -> Iterator[Event]:
        item = self._open
        assert item is not None
        item.texts.append(text)
        item.logprobs += logprobs or ()
        yield self._of_text(item, "delta", delta=text, logprobs=logprobs or [])

    def _close(self, is_whole: bool) -> Iterator[Event]:
        """is_whole: whether the model ended it, not a limit."""
        item, self._open = self._open, None
        if item is None:
            return
        text = "".join(item.texts)
        done: dict[str, Any] = {"text": text, "logprobs": item.logprobs}
        if item.kind == "function_call":
            done = {"arguments": text, "name": item.name}
        yield self._of_text(item, "done", **done)
        part = None
        if item.kind != "function_call":
            part = self._part(item)
            yield self._of_part(item, "done", part=part)
        document = item.document("completed" if is_whole else "incomplete", part, self._place)
        self._output.append(document)
        yield self._event("response.output_item.done", output_index=item.index, item=document)

    def _part(self, item: _Item) -> dict[str, Any]:
        text = "".join(item.texts)
        if item.kind == "message":
            logprobs = list(item.logprobs)
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
        kind = "summary_text" if self._place == "summary" else "reasoning_text"
        return {"type": kind, "text": text}

    def _of_part(self, item: _Item, what: str, **fields: Any) -> Event:
        if item.kind == "reasoning" and self._place == "summary":
            return self._of(item, f"reasoning_summary_part.{what}", summary_index=0, **fields)
        return self._of(item, f"content_part.{what}", content_index=0, **fields)

    def _of_text(self, item: _Item, what: str, **fields: Any) -> Event:
        if item.kind == "message":
            return self._of(item, f"output_text.{what}", content_index=0, **fields)
        fields.pop("logprobs", None)
        if item.kind == "function_call":
            return self._of(item, f"function_call_arguments.{what}", **fields)
        if self._place == "summary":
            return self._of(item, f"reasoning_summary_text.{what}", summary_index=0, **fields)
        return self._of(item, f"reasoning_text.{what}", content_index=0, **fields)

    def _of(self, item: _Item, kind: str, **fields: Any) -> Event:
        return self._event(f"response.{kind}", item_id=item.id, output_index=item.index, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        number = self._num_events
        self._num_events += 1
        return {"type": kind, "sequence_number": number, **fields}

    def _response(self, status: str, usage: Usage | None = None) -> dict[str, Any]:
        asked = self._asked
        reason = _INCOMPLETE.get(self._reason) if status == "incomplete" else None
        reasoning = asked.reasoning or {}
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "model": self._model,
            "output": list(self._output),
            "usage": None if usage is None else usage_json(usage),
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata if isinstance(asked.metadata, dict) else {},
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {name: reasoning.get(name) for name in ("effort", "summary")},
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": asked.text.format or {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in asked.tools],
            "top_logprobs": asked.top_logprobs,
            "top_p": asked.top_p,
            "truncation": asked.truncation,
        }


def usage_json(usage: Usage) -> dict[str, Any]:
    """Under the names of this API; `cost` in USD where there are prices."""
    document: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    return document if usage.cost_usd is None else document | {"cost": usage.cost_usd}
