"""What reward models learn from: pairs of answers of which one is better, answers that are safe or not. As files.

A line of a JSONL file is one of

    {"messages": [user turns], "chosen": ANSWER, "rejected": ANSWER}        also {"prompt": TEXT or messages, ...}
    {"chosen": [messages], "rejected": [messages]}                          which differ in their last message alone
    {"messages": [user turns, the assistant's], "safe": true or false}      also {"prompt": ..., "response": ANSWER, ..}

and ANSWER a text, a message of the assistant or a list that ends in one. Imports no torch.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nalar.config import UserError
from nalar.data.dialogue import encode_prompt
from nalar.data.records import dialogue_fault
from nalar.data.tokenizer import Tokenizer

Kind = Literal["preference", "safety"]
Messages = tuple[Mapping[str, Any], ...]

_THOUGHT = re.compile(r"\s*<think>(?P<thought>.*?)</think>\s*", re.DOTALL)
"""How public sets write a thought into the text of an answer."""
_FORMS: Mapping[Kind, str] = {
    "preference": "messages (or prompt), chosen and rejected, as docs/reward-models.md shows them",
    "safety": "messages that end with the assistant's, and safe: true or false",
}


@dataclass(frozen=True)
class Answer:
    """What an assistant said."""

    text: str
    thought: str = ""


@dataclass(frozen=True)
class Judgement:
    """One thing to learn: of two answers to a conversation the better one, or of one answer whether it is safe.

    Of a pair both are there. Of a label one of them is: `better` is safe, `worse` is not.
    """

    messages: Messages
    """Up to where the assistant's turn begins."""
    better: Answer | None
    worse: Answer | None
    better_first: bool = True
    """In which order a pair lies in a batch: drawn at random, so that no place belongs to the better side."""
    quality: tuple[float | None, float | None] = (None, None)
    """Of better and worse, where somebody knows: from 0 to 1."""
    flaw: str | None = None
    """The name of what is wrong with the worse one. None: nobody says."""

    @property
    def key(self) -> str:
        """The same for all judgements on one conversation."""
        return hashlib.sha256(json.dumps(list(self.messages), sort_keys=True).encode()).hexdigest()

    @property
    def answers(self) -> Iterator[Answer]:
        """Those that are there, in the order of a batch."""
        pair = (self.better, self.worse) if self.better_first else (self.worse, self.better)
        return (answer for answer in pair if answer is not None)


def scored_ids(tokenizer: Tokenizer, messages: Messages, answer: Answer, kind: Kind) -> list[int]:
    """What a reward model reads of an answer; it scores at the last of these ids.

    Preference: the final answer alone, behind a thought that is closed as it stands without thinking. Safety: thought
    and answer. <|end|> is left off: it is the padding too, and programs that read the score of a padded batch look for
    the last id that is none.
    """
    said = tokenizer.encode(answer.text)
    if kind == "preference":
        return [*encode_prompt(tokenizer, messages, thinking=False), *said]
    asked = encode_prompt(tokenizer, messages)
    return [*asked, *tokenizer.encode(answer.thought), tokenizer.end_think_id, *said]


def read_judgements(path: Path, kind: Kind) -> list[Judgement]:
    """All of a file. UserError that names file and line, what stands there and what was wanted."""
    found = [
        _judgement(record, kind, f"{path}, line {number}") for number, record in _records(path)
    ]
    if not found:
        raise UserError(at=str(path), got="no line", want=f"lines of {_FORMS[kind]}")
    return found


def held_out(judgement: Judgement, seed: int, frac: float) -> bool:
    """Whether the hash of its conversation, with the seed, falls into the first `frac` of all hashes."""
    digest = hashlib.blake2b(judgement.key.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") < frac * 2**64


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        got = error.strerror or str(error)
        raise UserError(at=str(path), got=got, want="a JSONL file that can be read") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            shown = line[:80].decode(errors="replace")
            at = f"{path}, line {number}"
            raise UserError(at=at, got=f"{shown!r}", want="one JSON object a line, in UTF-8")
        yield number, record


def _judgement(record: Mapping[str, Any], kind: Kind, at: str) -> Judgement:
    wanted = ("chosen", "rejected") if kind == "preference" else ("safe",)
    missing = [name for name in wanted if name not in record]
    if missing:
        got = f"no {' and no '.join(missing)}, but {', '.join(map(repr, record)) or 'nothing'}"
        raise UserError(at=at, got=got, want=_FORMS[kind])
    return _pair(record, at) if kind == "preference" else _label(record, at)


def _pair(record: Mapping[str, Any], at: str) -> Judgement:
    asked = _asked(record, at)
    chosen_context, chosen = _answer(record["chosen"], f"{at}, chosen")
    rejected_context, rejected = _answer(record["rejected"], f"{at}, rejected")
    contexts = [context for context in (chosen_context, rejected_context) if context]
    if len(contexts) == 2 and contexts[0] != contexts[1]:
        raise UserError(
            at=at,
            got="chosen and rejected that answer different conversations",
            want="lists of messages that differ in the last one alone",
        )
    # A list that begins with the user's turn holds the whole conversation, a prompt beside it a part of it at most.
    messages = contexts[0] if contexts else asked
    if not messages:
        want = "messages, a prompt, or chosen and rejected as whole conversations"
        raise UserError(at=at, got="answers to nothing", want=want)
    if chosen.text == rejected.text:
        want = "two answers, one better than the other"
        raise UserError(at=at, got=f"the same answer twice: {chosen.text!r:.80}", want=want)
    _refuse_unanswerable(messages, at)
    return Judgement(messages, chosen, rejected, better_first=_coin(messages, chosen, rejected))


def _label(record: Mapping[str, Any], at: str) -> Judgement:
    safe = record["safe"]
    if not isinstance(safe, bool):
        raise UserError(at=f"{at}, safe", got=f"{safe!r:.80}", want="true or false")
    asked = _asked(record, at)
    if "response" in record:
        _, answer = _answer(record["response"], f"{at}, response")
    else:
        context, answer = _answer(list(asked), f"{at}, messages")
        asked = context
    _refuse_unanswerable(asked, at)
    return Judgement(asked, answer if safe else None, None if safe else answer)


def _asked(record: Mapping[str, Any], at: str) -> Messages:
    """The conversation that stands beside the answers; nothing where they bring their own."""
    name = "messages" if "messages" in record else "prompt"
    value = record.get(name)
    if value is None:
        return ()
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    return _messages(value, f"{at}, {name}")


def _answer(value: object, at: str) -> tuple[Messages, Answer]:
    """What stands before the last message of a list, and what that says."""
    if isinstance(value, str):
        value = {"role": "assistant", "content": value}
    messages = _messages([value] if isinstance(value, dict) else value, at)
    last = messages[-1] if messages else {"role": "nobody"}
    if last["role"] != "assistant":
        got = f"a last message of {last['role']!r:.40}"
        raise UserError(at=at, got=got, want="the assistant's")
    thought, text = last.get("reasoning_content") or "", last["content"]
    written = _THOUGHT.match(text)
    if written and not thought:
        thought, text = written["thought"].strip(), text[written.end() :]
    return messages[:-1], Answer(text, thought)


def _messages(value: object, at: str) -> Messages:
    fault = dialogue_fault(value)
    if fault is not None and fault != "no turn of the assistant":
        raise UserError(
            at=at,
            got=f"{fault}: {value!r:.120}",
            want="messages with a role, user or assistant, and a text as content",
        )
    assert isinstance(value, list), "dialogue_fault said so"
    kept = ("role", "content", "reasoning_content")
    return tuple({name: one[name] for name in kept if one.get(name) is not None} for one in value)


def _refuse_unanswerable(messages: Messages, at: str) -> None:
    last = messages[-1]["role"] if messages else "nobody"
    if last != "user":
        raise UserError(at=at, got=f"a conversation that ends with {last}", want="the user's turn")


def _coin(messages: Messages, chosen: Answer, rejected: Answer) -> bool:
    """Heads or tails by what the pair says: the same on every reading."""
    said = json.dumps([list(messages), sorted((chosen.text, rejected.text))], sort_keys=True)
    is_first = bool(hashlib.sha256(said.encode()).digest()[0] & 1)
    return is_first == (chosen.text < rejected.text)


def balanced(sizes: Mapping[int, tuple[int, int]]) -> set[int]:
    """Which pairs to leave out, so that length is not what they teach.

    sizes: tokens of better and worse by number. Of what is left, better sides are about as long as worse ones; of the
    pairs that lean to the heavier side the largest go first, so that few go.
    """
    leads = {i: better - worse for i, (better, worse) in sizes.items()}
    left, dropped = sum(leads.values()), set[int]()
    for i in sorted(leads, key=lambda i: (-abs(leads[i]), i)):
        if abs(left - leads[i]) < abs(left):
            left -= leads[i]
            dropped.add(i)
    return dropped
