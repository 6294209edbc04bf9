"""Messages of OpenAI's chat form, with all that clients make of it, to the one form inside. Imports no torch."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from nalar.server.ask import Message
from nalar.server.wire.body import Wire
from nalar.server.wire.errors import bad_request
from nalar.server.wire.turns import call_json

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
CONTROL = "control"
"""Granite's way to switch thinking on: read elsewhere, no message."""
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


class WireFunction(Wire):
    name: str = Field(min_length=1, max_length=256)
    arguments: str | dict[str, Any] = ""


class WireCall(Wire):
    id: str = ""
    type: Any = None
    function: WireFunction


class WireMessage(Wire):
    role: str
    content: str | list[str | dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    """What a reply had in place of content."""
    tool_calls: list[WireCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


def messages_of(given: Sequence[WireMessage]) -> tuple[Message, ...]:
    """ApiError (400) for unknown roles, and for parts that are no text."""
    if not given:
        raise bad_request("messages: wanted at least one", "messages")
    messages = tuple(
        _message(one, f"messages[{i}]") for i, one in enumerate(given) if one.role != CONTROL
    )
    if not messages:
        raise bad_request("messages: wanted one besides those of the role control", "messages")
    return messages


def _message(given: WireMessage, at: str) -> Message:
    if given.role not in ROLES:
        roles = ", ".join(ROLES)
        raise bad_request(
            f"{at}.role: got {given.role[:40]!r}; wanted one of {roles}", f"{at}.role"
        )
    message: dict[str, Any] = {
        "role": ROLES[given.role],
        "content": text_of(given.content, f"{at}.content") or given.refusal or "",
    }
    if given.role == "assistant":
        thought = given.reasoning if given.reasoning is not None else given.reasoning_content
        if thought is not None:
            message["reasoning_content"] = thought
        if given.tool_calls:
            message["tool_calls"] = [
                call_json(call.id, call.function.name, call.function.arguments)
                for call in given.tool_calls
            ]
    if given.role == "tool":
        message["tool_call_id"] = given.tool_call_id or ""
    if given.name is not None:
        message["name"] = given.name
    return message


def text_of(content: str | Sequence[str | dict[str, Any]] | None, at: str) -> str:
    """Parts of text joined."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text")
        text = part.get("refusal" if kind == "refusal" else "text")
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise bad_request(
                f"{at}[{i}]: wanted a part of text; this model reads nothing else", at
            )
        texts.append(text)
    return "".join(texts)
