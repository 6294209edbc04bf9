"""Prompts to ids, and sampled ids to thought and answer, piece by piece or at once."""

import codecs
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer

Part = Literal["thought", "answer", "after"]
Message = Mapping[str, str | None]
"""`role` (user or assistant) and `content`; an assistant's may have `reasoning_content`."""


def encode_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], *, thinking: bool = True
) -> list[int]:
    """Ids of a conversation up to where the assistant's turn begins, as the chat template renders it.

    Texts never become special ids, whatever they contain. Without thinking the thought is opened and closed at once.
    """
    t = tokenizer
    ids, _ = encode_dialogue(tokenizer, messages)
    return [*ids, t.assistant_id, t.think_id, *([] if thinking else [t.end_think_id])]


def encode_dialogue(
    tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation as the chat template renders it, and which of them are the assistant's to choose.

    Those are what a prompt leaves open: thought, </think>, answer and <|end|>. A turn without a thought is one that was
    asked for without thinking: there </think> is part of the prompt, and choosing it is not to be learned.
    """
    t, ids, is_own = tokenizer, list[int](), list[bool]()
    for message in messages:
        content = t.encode(message["content"] or "")
        if message["role"] == "user":
            given, own = [t.user_id, *content], list[int]()
        elif message["role"] == "assistant":
            thought = t.encode(message.get("reasoning_content") or "")
            given, own = (
                [t.assistant_id, t.think_id],
                [*thought, t.end_think_id, *content, t.end_id],
            )
            if not thought:
                given, own = [*given, t.end_think_id], own[1:]
        else:
            raise UserError(at="message.role", got=repr(message["role"]), want="user or assistant")
        ids += given + own
        is_own += [False] * len(given) + [True] * len(own)
    return ids, is_own


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that one id added. Both empty where a character is incomplete or the id is special."""

    thought: str = ""
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the assistant said after the prompt."""

    thought: str
    answer: str
    closed: bool
    """The turn ended with <|end|> rather than being cut."""
    well_formed: bool
    """Closed; with thinking exactly one </think>, without none; an answer that is not blank; no other special id."""


class Parser:
    """Reads the ids of an assistant's turn one by one, those after what encode_prompt gave.

    The first </think> ends the thought, the first <|end|> the turn. Special ids never become text. Bytes that are no
    UTF-8 become U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool = True) -> None:
        self._tokenizer = tokenizer
        self._part: Part = "thought" if thinking else "answer"
        self._texts: dict[str, list[str]] = {"thought": [], "answer": []}
        self._has_stray = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> Delta:
        """Take one id; returns the text that became complete by it."""
        if self._part == "after":
            self._has_stray = True
            return Delta()
        if token_id not in self._tokenizer.special_ids:
            return self._emit(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
        if token_id == self._tokenizer.end_id:
            return self._leave("after")
        if token_id == self._tokenizer.end_think_id and self._part == "thought":
            return self._leave("answer")
        self._has_stray = True
        return Delta()

    def flush(self) -> Delta:
        """The rest of a cut text: U+FFFD for a character left incomplete. Call at the end of the ids."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return self._emit(rest)

    def result(self) -> Parsed:
        """All that was read so far. Incomplete characters are missing before flush."""
        thought, answer = ("".join(self._texts[part]) for part in ("thought", "answer"))
        closed = self._part == "after"
        well_formed = closed and bool(answer.strip()) and not self._has_stray
        return Parsed(thought, answer, closed, well_formed)

    def _leave(self, part: Part) -> Delta:
        delta = self.flush()
        self._part = part
        return delta

    def _emit(self, text: str) -> Delta:
        if not text or self._part == "after":
            return Delta()
        self._texts[self._part].append(text)
        return Delta(thought=text) if self._part == "thought" else Delta(answer=text)


def parse(tokenizer: Tokenizer, ids: Iterable[int], *, thinking: bool = True) -> Parsed:
    """Thought and answer of a whole turn, or of one that was cut: what a Parser gives, in a fifth of its time."""
    turn = list(ids)
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
    well_formed = closed and bool(texts[1].strip()) and not has_stray
    return Parsed(texts[0], texts[1], closed, well_formed)
