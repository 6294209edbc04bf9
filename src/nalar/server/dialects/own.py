"""Dialogues as models of our own have them: data/dialogue.py under the contract of all dialects."""

from collections.abc import Mapping, Sequence
from typing import Any

from nalar.config import UserError
from nalar.data.dialogue import encode_dialogue, encode_prompt, opens_thought, tool_ids
from nalar.data.tokenizer import Tokenizer
from nalar.sandbox.tools import write_arguments
from nalar.server.ask import Message, ToolSpec
from nalar.server.dialects.json_arguments import as_object, one_string, only_string
from nalar.server.dialects.reader import Prompt
from nalar.server.dialects.veil import whole


class OwnWriter:
    """Ids by data/dialogue.py.

    Our template has no system role: system messages are put before the next user's text, a blank line between, or
    become a user's message where none follows. It has no place for a list of tools either: a model knows those that it
    was trained with, and calls are written as it writes them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        thinking: bool | None,
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        kwargs: Mapping[str, Any],
    ) -> Prompt:
        """UserError where tools are given to a tokenizer that knows none."""
        if tools:
            tool_ids(self._tokenizer)
        fitting = _with_fitting_thoughts(with_system_folded(messages), thinking is not False)
        told = whole([_as_written(message, tools) for message in fitting])
        if continue_final_message:
            ids = self._continued(told)
        elif add_generation_prompt:
            ids = encode_prompt(self._tokenizer, told, thinking=thinking is not False)
        else:
            ids = encode_dialogue(self._tokenizer, told)[0]
        return Prompt(
            tuple(ids),
            opens_thought=opens_thought(self._tokenizer, ids),
            may_think=False,
            tools=tuple(tools),
        )

    def _continued(self, messages: Sequence[Message]) -> list[int]:
        """The last message is the assistant's and goes on: in its answer, or in its thought where it has no answer."""
        last = messages[-1] if messages else {}
        if last.get("role") != "assistant" or last.get("tool_calls"):
            raise UserError(
                at="continue_final_message",
                got="a last message that is not an assistant's text",
                want="a thought or an answer to go on with",
            )
        t = self._tokenizer
        ids = encode_dialogue(t, messages)[0][:-1]
        if not last.get("content") and last.get("reasoning_content") and ids[-1] == t.end_think_id:
            ids.pop()
        return ids


def with_system_folded(messages: Sequence[Message]) -> list[Message]:
    """Without the role system: its text stands before the next user's."""
    folded: list[Message] = []
    told: list[str] = []
    for message in messages:
        if message["role"] == "system":
            told.append(message.get("content") or "")
        elif message["role"] == "user" and told:
            text = "\n\n".join([*told, message.get("content") or ""])
            folded.append({**message, "content": text})
            told = []
        else:
            folded.append(message)
    if told:
        folded.append({"role": "user", "content": "\n\n".join(told)})
    return folded


def _with_fitting_thoughts(messages: Sequence[Message], thinking: bool) -> list[Message]:
    """As the model would have drawn them, whoever has kept the history.

    Where it thinks, a message that does nothing but call was drawn in a thought, if an empty one: many clients drop
    that. A thought behind an answer of the same turn, as other models have it, has no place here and is left out.
    """
    told: list[Message] = []
    has_answered = False
    for message in messages:
        if message["role"] == "assistant":
            calls, said = message.get("tool_calls"), message.get("content")
            if has_answered:
                message = {k: v for k, v in message.items() if k != "reasoning_content"}
            elif thinking and calls and not said:
                message = {**message, "reasoning_content": message.get("reasoning_content") or ""}
            is_closed = bool(said) or message.get("reasoning_content") is None
            has_answered = bool(calls) and (has_answered or is_closed)
        elif message["role"] == "user":
            has_answered = False
        told.append(message)
    return told


def _as_written(message: Message, tools: Sequence[ToolSpec]) -> Message:
    """Calls with arguments as the model writes them: bare where the tool has one argument, a string."""
    if not message.get("tool_calls"):
        return message
    known = {tool.name: tool for tool in tools}
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        arguments, tool = as_object(function["arguments"]), known.get(function["name"])
        key = only_string(tool.parameters) if tool else None
        if arguments is not None and key is not None:
            written = write_arguments(one_string(key), arguments)
            function = {**function, "arguments": written}
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}
