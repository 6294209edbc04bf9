"""Histories of APIs whose thoughts, texts and calls are items of their own, as messages of chats. Imports no torch."""

import json
from typing import Any

from nalar.server.ask import Message

_TEXTS = ("content", "reasoning_content")


class Turns:
    """Takes items in order. What an assistant says in a row is one message, as long as its order is the one that a
    message has: thought, text, calls.
    """

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        """Their texts in parts: there may be as many as a body holds."""
        self._names: dict[str, str] = {}
        """Of the calls so far, by their ids."""

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(
            message | {name: "".join(message[name]) for name in _TEXTS if name in message}
            for message in self._messages
        )

    def say(self, role: str, text: str) -> None:
        """Of system or user."""
        self._messages.append({"role": role, "content": [text]})

    def thought(self, text: str) -> None:
        message = self._assistant("content", "tool_calls")
        message.setdefault("reasoning_content", []).append(text)

    def answer(self, text: str) -> None:
        content = self._assistant("tool_calls")["content"]
        content += [text] if text else []

    def call(self, call_id: str, name: str, arguments: str | dict[str, Any]) -> None:
        calls = self._assistant().setdefault("tool_calls", [])
        calls.append(call_json(call_id, name, arguments))
        self._names[call_id] = name

    def result(self, call_id: str, text: str) -> None:
        """What a call gave, under the name that the call had."""
        message = {"role": "tool", "content": [text], "tool_call_id": call_id}
        known = {"name": self._names[call_id]} if call_id in self._names else {}
        self._messages.append(message | known)

    def _assistant(self, *later: str) -> dict[str, Any]:
        """The assistant's message at the end, unless it has come further than this; else a new one."""
        last = self._messages[-1] if self._messages else None
        if last is None or last["role"] != "assistant" or any(last.get(name) for name in later):
            last = {"role": "assistant", "content": []}
            self._messages.append(last)
        return last


def call_json(call_id: str, name: str, arguments: str | dict[str, Any]) -> dict[str, Any]:
    """A call as messages hold it: arguments are text."""
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}
