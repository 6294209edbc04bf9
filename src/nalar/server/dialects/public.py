"""Dialogues as a public checkpoint's chat template writes them."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nalar.config import UserError
from nalar.server.ask import Message, ToolSpec
from nalar.server.dialects.controls import TEMPLATE_SWITCHES
from nalar.server.dialects.json_arguments import as_object
from nalar.server.dialects.mark_table import MarkTable
from nalar.server.dialects.public_tokenizer import PublicTokenizer
from nalar.server.dialects.reader import Prompt
from nalar.server.dialects.sandbox import Template
from nalar.server.dialects.veil import Veil, texts_in, whole

_OURS = ("messages", "tools", "documents", "add_generation_prompt")
_PROBE = "probe_key"


class TemplateWriter:
    """Ids of what a template renders. What users, tools and the model wrote never becomes a special token."""

    def __init__(
        self,
        tokenizer: PublicTokenizer,
        table: MarkTable,
        template: Template,
        tokens: Mapping[str, str],
    ) -> None:
        """tokens: texts of bos_token and the like, as templates name them."""
        self._tokenizer, self._table, self._template = tokenizer, table, template
        self._tokens = dict(tokens)
        found = sorted(tokenizer.added, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, found)) or r"(?!)")
        self._wants_objects = self._takes_objects()
        self._has_tools = self._shows_tools()

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
        if taken := {*_OURS, *self._tokens} & kwargs.keys():
            at = f"chat_template_kwargs.{min(taken)}"
            raise UserError(at=at, got="a variable of ours", want="another name")
        if tools and not self._has_tools:
            raise UserError(
                at="tools",
                got=f"{len(tools)} for a model whose chat template shows it none",
                want="no tools, or a template that writes them",
                hint="nalar serve --chat-template FILE",
            )
        told = whole([self._told(message) for message in self._with_ids(messages)])
        given = whole([_as_function(tool) for tool in tools])
        asked = whole({**_switch(thinking), **kwargs})
        texts = {*texts_in([told, given, asked]), self._template.text, *self._tokens.values()}
        veil = Veil(self._tokenizer.added, texts)
        part = _mark_place(told, veil) if continue_final_message else None
        variables = {
            **self._tokens,
            **veil.hide_all(asked),
            "messages": [_hidden(message, veil) for message in told],
            "tools": [_hidden_tool(tool, veil) for tool in given] or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._template.render(variables, veil)
        if part is not None:
            text = _cut_at(text, veil.tag, part)
        ids = self._encode(text, veil)
        if part is None and add_generation_prompt and thinking is False:
            ids += self._closing(ids)
        return Prompt(
            tuple(ids),
            opens_thought=self._opens_thought(ids) or part == "reasoning_content",
            may_think=self._may_think(ids),
            tools=tuple(tools),
            num_calls=sum(len(message.get("tool_calls") or ()) for message in messages),
        )

    def _encode(self, text: str, veil: Veil) -> list[int]:
        """Special tokens where the template wrote them; all between as text."""
        t, places = self._tokenizer, list(self._special.finditer(text))
        if not veil.hides_in(text):
            ids = t.encode(text, allow_special=True)
            if [i for i in ids if i in t.special_ids] == [t.added[p[0]] for p in places]:
                return ids
        ids, start, eats = [], 0, False
        for place in places:
            before, behind = t.swallows[place[0]]
            ids += self._text(text[start : place.start()], veil, eats, before)
            ids.append(t.added[place[0]])
            start, eats = place.end(), behind
        return ids + self._text(text[start:], veil, eats, False)

    def _text(self, text: str, veil: Veil, eats_start: bool, eats_end: bool) -> list[int]:
        text = text.lstrip() if eats_start else text
        return self._tokenizer.encode(veil.show(text.rstrip() if eats_end else text))

    def _told(self, message: Message) -> dict[str, Any]:
        """A message as templates expect it."""
        told = {k: v for k, v in message.items() if v is not None and k != "tool_calls"}
        told.setdefault("content", "")
        if message["role"] != "assistant":
            return told
        told.update(self._thought_apart(told))
        if message.get("tool_calls"):
            told["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
            if not told["content"] and self._table.family.empty_is_none:
                told["content"] = None
        return told

    def _thought_apart(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Clients that know no reasoning_content send a thought back within its marks."""
        think, end_think = self._table.family.think[0], self._table.family.end_think[0]
        content = told["content"]
        if told.get("reasoning_content") or not content.lstrip().startswith(think):
            return {}
        thought, end, answer = content.lstrip().removeprefix(think).partition(end_think)
        if not end:
            return {}
        return {"reasoning_content": thought.strip("\n"), "content": answer.lstrip("\n")}

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function["arguments"]
        if self._wants_objects:
            found = as_object(arguments or "{}")
            arguments = arguments if found is None else found
        elif not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {**call, "type": "function", "function": {**function, "arguments": arguments}}

    def _with_ids(self, messages: Sequence[Message]) -> list[Message]:
        """Calls by the ids that the family's models write."""
        if self._table.family.call_id != "kimi":
            return list(messages)
        told: list[Message] = []
        ids, count = dict[str, str](), itertools.count()
        for message in messages:
            if message.get("tool_calls"):
                calls = []
                for call in message["tool_calls"]:
                    own = f"functions.{call['function']['name']}:{next(count)}"
                    ids[call.get("id") or own] = own
                    calls.append({**call, "id": own})
                message = {**message, "tool_calls": calls}
            elif (known := ids.get(message.get("tool_call_id", ""))) is not None:
                message = {**message, "tool_call_id": known}
            told.append(message)
        return told

    def _takes_objects(self) -> bool:
        """Whether the template wants a call's arguments as an object: some join them to other texts."""
        function = {"name": "f", "arguments": {_PROBE: "x"}}
        call = {"id": "call_0", "type": "function", "function": function}
        said = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": [call]}
        messages = [{"role": "user", "content": "x"}, said]
        try:
            text = self._template.render({**self._tokens, "messages": messages, "tools": None})
        except UserError:
            return False
        return _PROBE in text and f"'{_PROBE}'" not in text

    def _shows_tools(self) -> bool:
        """Whether a tool that is given stands in the prompt; where none can be tried, the template says so itself."""
        parameters = {"type": "object", "properties": {_PROBE: {"type": "string"}}}
        tool = _as_function(ToolSpec(_PROBE, _PROBE, parameters))
        user = {"role": "user", "content": "x"}
        for messages in ([user], [{"role": "system", "content": "x"}, user]):
            asked = {"messages": messages, "tools": [tool], "add_generation_prompt": True}
            try:
                if _PROBE in self._template.render({**self._tokens, **asked}):
                    return True
            except UserError:
                return True
        return False

    def _closing(self, ids: Sequence[int]) -> list[int]:
        """What ends a thought that is not wanted, where the template cannot."""
        start, end = self._table.id_of("think"), self._table.id_of("end_think")
        if self._template.switches_thinking or start is None or end is None:
            return []
        family = self._table.family
        if self._opens_thought(ids):
            opened: list[int] = []
        elif self._may_think(ids) and family.closes_unopened:
            opened = [start, *self._tokenizer.encode(family.padding)]
        else:
            return []
        padding = self._tokenizer.encode(family.padding * 2) if family.padding else []
        return [*opened, end, *padding]

    def _opens_thought(self, ids: Sequence[int]) -> bool:
        marks = {role: self._table.id_of(role) for role in ("think", "end_think")}
        last = next((i for i in reversed(ids) if i in marks.values()), None)
        return last is not None and last == marks["think"]

    def _may_think(self, ids: Sequence[int]) -> bool:
        """Not where a thought has just been closed."""
        end = self._table.id_of("end_think")
        if end is None:
            return "think" in self._table.of_text.values()
        solid = (i for i in reversed(ids) if self._tokenizer.token_bytes(i).strip())
        return next(solid, None) != end


def _switch(thinking: bool | None) -> dict[str, bool]:
    return {} if thinking is None else dict.fromkeys(TEMPLATE_SWITCHES, thinking)


def _as_function(tool: ToolSpec) -> dict[str, Any]:
    about = {"description": tool.description} if tool.description else {}
    function = {"name": tool.name, **about, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _hidden(message: Mapping[str, Any], veil: Veil) -> dict[str, Any]:
    """All but what templates ask for by name."""
    hidden = {k: v if k in ("role", "tool_calls") else veil.hide_all(v) for k, v in message.items()}
    if "tool_calls" in message:
        hidden["tool_calls"] = [
            {k: v if k == "type" else veil.hide_all(v) for k, v in call.items()}
            for call in message["tool_calls"]
        ]
    return hidden


def _hidden_tool(tool: Mapping[str, Any], veil: Veil) -> dict[str, Any]:
    return {**tool, "function": veil.hide_all(tool["function"])}


def _mark_place(messages: Sequence[dict[str, Any]], veil: Veil) -> str:
    """Puts the tag, and a blank that a template may trim, where the last message goes on; returns the part."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or "tool_calls" in last:
        raise UserError(
            at="continue_final_message",
            got="a last message that is not an assistant's text",
            want="a thought or an answer to go on with",
        )
    part = (
        "content" if last["content"] or not last.get("reasoning_content") else "reasoning_content"
    )
    last[part] = f"{last[part]}{veil.tag} "
    return part


def _cut_at(text: str, tag: str, part: str) -> str:
    before, found, behind = text.rpartition(tag)
    if not found:
        raise UserError(
            at="continue_final_message",
            got=f"a template that leaves out the last message's {part}",
            want="a part that it renders",
        )
    return before if behind.startswith(" ") else before.rstrip()
