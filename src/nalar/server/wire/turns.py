"""Histories of APIs whose thoughts, texts and calls are items of their own, as messages of chats. Imports no torch."""

import json
from typing import Any

from nalar.server.ask import Message


class Turns:
    """Takes items in order. What an assistant says in a row is one message, as long as its order is the one that a
    message has: thought, text, calls.
    """

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(self._messages)

    def say(self, role: str, text: str) -> None:
        """Of system or user."""
        self._messages.append({"role": role, "content": text})

    def thought(self, text: str) -> None:
        message = self._assistant("content", "tool_calls")
        message["reasoning_content"] = message.get("reasoning_content", "") + text

    def answer(self, text: str) -> None:
        self._assistant("tool_calls")["content"] += text

    def call(self, call_id: str, name: str, arguments: str | dict[str, Any]) -> None:
        calls = self._assistant().setdefault("tool_calls", [])
        calls.append(call_json(call_id, name, arguments))

    def result(self, call_id: str, text: str) -> None:
        """What a call gave, under the name that the call had."""
        message = {"role": "tool", "content": text, "tool_call_id": call_id}
        for earlier in reversed(self._messages):
            for call in earlier.get("tool_calls", ()):
                if call["id"] == call_id:
                    self._messages.append(message | {"name": call["function"]["name"]})
                    return
        self._messages.append(message)

    def _assistant(self, *later: str) -> dict[str, Any]:
        """The assistant's message at the end, unless it has come further than this; else a new one."""
        last = self._messages[-1] if self._messages else None
        if last is None or last["role"] != "assistant" or any(last.get(name) for name in later):
            last = {"role": "assistant", "content": ""}
            self._messages.append(last)
        return last


def call_json(call_id: str, name: str, arguments: str | dict[str, Any]) -> dict[str, Any]:
    """A call as messages hold it: arguments are text."""
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}
