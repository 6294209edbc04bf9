"""Prompts to ids, and sampled ids to thought, calls of tools and answer, piece by piece or at once."""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nalar.config import UserError
from nalar.data.template import END_THINK, THINK
from nalar.data.tokenizer import Tokenizer, ToolIds

Part = Literal["thought", "answer", "after"]
Message = Mapping[str, Any]
"""`role` (user, assistant or tool) and `content`; an assistant's may have `reasoning_content`, and `tool_calls` in
OpenAI's form, with arguments as an object or as the text that is to stand behind the name."""


def encode_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], *, thinking: bool = True
) -> list[int]:
    """Ids of a conversation up to where the assistant's turn begins, or goes on behind a tool's output, as the chat
    template renders it.

    Texts never become special ids, whatever they contain. Without thinking the thought is closed as it stands.
    """
    written = _written(tokenizer, messages)
    if not written.is_open:
        written.begin_turn()
    if written.thinks and not thinking:
        written.give(tokenizer.end_think_id)
    return written.ids


def encode_dialogue(
    tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation as the chat template renders it, and which of them are the assistant's to choose.

    Those are what a prompt leaves open: thought, calls, </think>, answer and <|end|>. A turn without a thought is one
    that was asked for without thinking: there </think> is part of the prompt, and choosing it is not to be learned.
    """
    written = _written(tokenizer, messages)
    return written.ids, written.is_own


def opens_thought(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Whether what follows a prompt is thought: not where it was closed before a tool's output."""
    for token_id in reversed(prompt_ids):
        if token_id in (tokenizer.think_id, tokenizer.end_think_id):
            return token_id == tokenizer.think_id
    return False


class _Written:
    """A conversation as ids, message by message."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.ids: list[int] = []
        self.is_own: list[bool] = []
        self.is_open = False
        """The assistant has called tools, and goes on when it has their outputs."""
        self.thinks = False

    def give(self, *ids: int) -> None:
        self._add(ids, own=False)

    def _say(self, *ids: int) -> None:
        self._add(ids, own=True)

    def _add(self, ids: Sequence[int], *, own: bool) -> None:
        self.ids += ids
        self.is_own += [own] * len(ids)

    def begin_turn(self) -> None:
        self.give(self._tokenizer.assistant_id, self._tokenizer.think_id)
        self.thinks = True

    def user(self, message: Message) -> None:
        t = self._tokenizer
        if self.is_open:
            self.give(*([t.end_think_id] if self.thinks else []), t.end_id)
            self.is_open = False
        self.give(t.user_id, *t.encode(message.get("content") or ""))

    def tool(self, message: Message) -> None:
        if not self.is_open:
            raise UserError(
                at="message.role", got="an output of a tool", want="a call of the assistant first"
            )
        self.give(*encode_output(self._tokenizer, message.get("content") or ""))

    def assistant(self, message: Message) -> None:
        t = self._tokenizer
        thought = t.encode(message.get("reasoning_content") or "")
        said = t.encode(message.get("content") or "")
        calls = message.get("tool_calls") or ()
        if is_asked := not self.is_open:
            self.begin_turn()
        if thought and not self.thinks:
            raise UserError(
                at="message.reasoning_content",
                got="a thought behind an answer of the same turn",
                want="no thought, once a message with content has called a tool",
            )
        self._say(*thought)
        if self.thinks and (
            said or not calls or not isinstance(message.get("reasoning_content"), str)
        ):
            self._add([t.end_think_id], own=bool(thought) or not is_asked)
            self.thinks = False
        self._say(*said)
        for call in calls:
            self._say(*encode_call(t, call["function"]["name"], call["function"]["arguments"]))
        self.is_open = bool(calls)
        if not self.is_open:
            self._say(t.end_id)


def _written(tokenizer: Tokenizer, messages: Sequence[Message]) -> _Written:
    written = _Written(tokenizer)
    add = {"user": written.user, "assistant": written.assistant, "tool": written.tool}
    for message in messages:
        if message["role"] not in add:
            raise UserError(
                at="message.role", got=repr(message["role"]), want="user, assistant or tool"
            )
        add[message["role"]](message)
    return written


def tool_ids(tokenizer: Tokenizer) -> ToolIds:
    """UserError where a tokenizer has none: its model was trained without tools."""
    if tokenizer.tools is None:
        raise UserError(
            at="tools",
            got="a tokenizer without ids for calls of tools",
            want="a model that was trained with --tokenizer.tools",
            hint="ask it without tools (docs/tools.md)",
        )
    return tokenizer.tools


def encode_call(
    tokenizer: Tokenizer, name: str, arguments: str | Mapping[str, Any]
) -> tuple[int, ...]:
    """`<tool_call>name arguments</tool_call>`: as text that stands as it is, or an object, which is written as JSON."""
    ids = tool_ids(tokenizer)
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ids.call, *tokenizer.encode(f"{name} {written}"), ids.end_call


def encode_output(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """`<tool_output>text</tool_output>`."""
    ids = tool_ids(tokenizer)
    return ids.output, *tokenizer.encode(text), ids.end_output


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call, as the model wrote it."""

    name: str
    """What stands before the first space."""
    arguments: str
    """All behind it: text of the one argument, or a JSON object (sandbox/tools.py: read_arguments)."""
    output: str | None = None
    """None: it was not answered."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one id added. All empty where a character is incomplete or the id is special."""

    thought: str = ""
    answer: str = ""
    call: str = ""
    """Text of a call that is not at its end."""
    output: str = ""
    """Text of a tool's output."""
    finished: ToolCall | None = None
    """The call that ended here."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the assistant said after the prompt."""

    thought: str
    answer: str
    closed: bool
    """The turn ended with <|end|> rather than being cut."""
    well_formed: bool
    """Closed; with thinking exactly one </think>, without none, not even spelled out; an answer that is not blank;
    every call ended and answered, no output without a call; no other special id."""
    calls: tuple[ToolCall, ...] = ()


class Parser:
    """Reads the ids of an assistant's turn one by one, those after what encode_prompt gave.

    The first </think> ends the thought, the first <|end|> the turn. Calls stand in thought or answer and are part of
    neither. Special ids never become text. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool = True) -> None:
        self._tokenizer, self._thinking = tokenizer, thinking
        self._part: Part = "thought" if thinking else "answer"
        self._inside: Literal["call", "output"] | None = None
        self._texts: dict[str, list[str]] = {"thought": [], "answer": [], "call": [], "output": []}
        self._calls: list[ToolCall] = []
        self._has_stray = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> Delta:
        """Take one id; returns the text that became complete by it."""
        if self._part == "after":
            self._has_stray = True
            return Delta()
        tools = self._tokenizer.tools
        if self._awaits_output and not (tools and token_id == tools.output):
            self._has_stray = True
        if token_id not in self._tokenizer.special_ids:
            return self._emit(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
        if token_id == self._tokenizer.end_id:
            self._has_stray = self._has_stray or self._inside is not None
            return self._leave("after")
        if self._inside is None and token_id == self._tokenizer.end_think_id:
            if self._part == "thought":
                return self._leave("answer")
        elif tools is not None and token_id in self._tokenizer.tool_ids:
            return self._tool(token_id, tools)
        self._has_stray = True
        return Delta()

    def _tool(self, token_id: int, tools: ToolIds) -> Delta:
        """Take an id that begins or ends a call or an output."""
        delta = self.flush()
        if self._inside is None and token_id == tools.call:
            self._inside = "call"
        elif self._inside is None and token_id == tools.output and self._awaits_output:
            self._inside = "output"
        elif self._inside == "call" and token_id == tools.end_call:
            name, _, arguments = self._taken("call").partition(" ")
            self._calls.append(ToolCall(name, arguments))
            self._inside = None
            return replace(delta, finished=self._calls[-1])
        elif self._inside == "output" and token_id == tools.end_output:
            self._calls[-1] = replace(self._calls[-1], output=self._taken("output"))
            self._inside = None
        else:
            self._has_stray = True
        return delta

    @property
    def _awaits_output(self) -> bool:
        return self._inside is None and bool(self._calls) and self._calls[-1].output is None

    def _taken(self, inside: str) -> str:
        text = "".join(self._texts[inside])
        self._texts[inside].clear()
        return text

    def flush(self) -> Delta:
        """The rest of a cut text: U+FFFD for a character left incomplete. Call at the end of the ids."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return self._emit(rest)

    def result(self) -> Parsed:
        """All that was read so far. Incomplete characters are missing before flush."""
        thought, answer = ("".join(self._texts[part]) for part in ("thought", "answer"))
        closed = self._part == "after"
        is_stray = self._has_stray or (not self._thinking and spells_a_thought(answer))
        well_formed = closed and bool(answer.strip()) and not is_stray
        return Parsed(thought, answer, closed, well_formed, tuple(self._calls))

    def _leave(self, part: Part) -> Delta:
        delta = self.flush()
        self._part, self._inside = part, None
        return delta

    def _emit(self, text: str) -> Delta:
        if not text or self._part == "after":
            return Delta()
        at = self._inside or self._part
        self._texts[at].append(text)
        return Delta(
            thought=text if at == "thought" else "",
            answer=text if at == "answer" else "",
            call=text if at == "call" else "",
            output=text if at == "output" else "",
        )


def parse(tokenizer: Tokenizer, ids: Iterable[int], *, thinking: bool = True) -> Parsed:
    """Thought and answer of a whole turn, or of one that was cut: what a Parser gives, in a fifth of its time where no
    tool is called."""
    turn = list(ids)
    if tokenizer.tools is not None and not tokenizer.tool_ids.isdisjoint(turn):
        parser = Parser(tokenizer, thinking=thinking)
        for token_id in turn:
            parser.feed(token_id)
        parser.flush()
        return parser.result()
    end = turn.index(tokenizer.end_id) if tokenizer.end_id in turn else len(turn)
    closed, has_stray = end < len(turn), end + 1 < len(turn)
    thought, answer = list[int](), turn[:end]
    if thinking:
        turns_at = answer.index(tokenizer.end_think_id) if tokenizer.end_think_id in answer else end
        thought, answer = answer[:turns_at], answer[turns_at + 1 :]
    texts = []
    for part in (thought, answer):
        if not tokenizer.special_ids.isdisjoint(part):
            has_stray = True
            part = [token_id for token_id in part if token_id not in tokenizer.special_ids]
        texts.append(tokenizer.decode(part))
    has_stray = has_stray or (not thinking and spells_a_thought(texts[1]))
    well_formed = closed and bool(texts[1].strip()) and not has_stray
    return Parsed(texts[0], texts[1], closed, well_formed)


def spells_a_thought(text: str) -> bool:
    """Whether a mark of a thought stands in a text, letter by letter: what a reply without thinking must not have."""
    return THINK in text or END_THINK in text


def has_thought(
    tokenizer: Tokenizer, ids: Iterable[int], parsed: Parsed, *, thinking: bool = True
) -> bool:
    """Whether a reply thinks: asked with thinking, a thought that is not blank; without, any mark of a thought, as an
    id or spelled out."""
    if thinking:
        return bool(parsed.thought.strip())
    marks = {tokenizer.think_id, tokenizer.end_think_id}
    return not marks.isdisjoint(ids) or spells_a_thought(parsed.answer)
