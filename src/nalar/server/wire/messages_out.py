"""`/v1/messages`: what is said, as blocks and their events; the whole message is what the events put together.

Imports no torch.
"""

from collections.abc import Iterator
from typing import Any

import pydantic_core

from nalar.server.ask import Ended, Piece, Said, Usage

Event = dict[str, Any]
SIGNATURE = "unsigned"
"""Clients want one of a thought and send it back; nobody reads it."""
_STOPS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_KINDS = {"thought": "thinking", "answer": "text"}


class MessageWriter:
    """One message. Feed it all that is said, in order."""

    def __init__(self, message_id: str, model: str, num_prompt: int) -> None:
        self._id, self._model = message_id, model
        self._blocks: list[dict[str, Any]] = []
        self._open: str | None = None
        """Type of the last block, while it is open."""
        self._written: list[str] = []
        """Of the last block."""
        self._stop: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}
        self._usage = usage_json(Usage(num_prompt, 0, 0, 0))

    def opening(self) -> Iterator[Event]:
        """Before anything is said; how much of the prompt was cached comes at the end."""
        yield {"type": "message_start", "message": self.message()}

    def events(self, said: Said) -> Iterator[Event]:
        if isinstance(said, Piece):
            yield from self._piece(said)
        elif isinstance(said, Ended):
            yield from self._close()
            self._stop["stop_reason"] = _STOPS[said.finish_reason]
            if said.finish_reason == "stop" and isinstance(said.stop_reason, str):
                self._stop = {"stop_reason": "stop_sequence", "stop_sequence": said.stop_reason}
        elif isinstance(said, Usage):
            self._usage = usage_json(said)
            yield {"type": "message_delta", "delta": dict(self._stop), "usage": self._usage}
            yield {"type": "message_stop"}

    def message(self) -> dict[str, Any]:
        """As far as it is said."""
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": list(self._blocks),
            **self._stop,
            "usage": self._usage,
        }

    def _piece(self, piece: Piece) -> Iterator[Event]:
        match piece.kind:
            case "thought" | "answer":
                if piece.text or piece.kind == "thought":
                    kind = _KINDS[piece.kind]
                    if self._open != kind:
                        block = {"type": kind, kind: ""}
                        yield from self._begin(
                            block | ({"signature": ""} if kind == "thinking" else {})
                        )
                    if piece.text:
                        yield self._delta(f"{kind}_delta", kind, piece.text)
            case "call":
                block = {"type": "tool_use", "id": piece.call_id, "name": piece.name}
                yield from self._begin({**block, "input": {}})
            case "arguments":
                yield self._delta("input_json_delta", "partial_json", piece.text)
            case "call_end":
                yield from self._close()

    def _begin(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._close()
        self._open, self._written = block["type"], []
        self._blocks.append(dict(block))
        index = len(self._blocks) - 1
        yield {"type": "content_block_start", "index": index, "content_block": block}

    def _delta(self, kind: str, name: str, text: str) -> Event:
        self._written.append(text)
        delta = {"type": kind, name: text}
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _close(self) -> Iterator[Event]:
        kind, self._open = self._open, None
        if kind is None:
            return
        block, index, text = self._blocks[-1], len(self._blocks) - 1, "".join(self._written)
        if kind == "tool_use":
            block["input"] = _object(text)
        else:
            block[kind] = text
        if kind == "thinking":
            block["signature"] = SIGNATURE
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}


def _object(text: str) -> dict[str, Any]:
    """Arguments of a call; of one that was cut as far as they go, as clients read them from a stream."""
    try:
        value = pydantic_core.from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def usage_json(usage: Usage) -> dict[str, Any]:
    """`input_tokens` are those that were not cached; `cost` in USD where there are prices."""
    document: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }
    return document if usage.cost_usd is None else document | {"cost": usage.cost_usd}
