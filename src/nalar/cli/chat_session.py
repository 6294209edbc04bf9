"""A conversation in the terminal: its messages, how the next reply is asked for, what replies took so far."""

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nalar.agent.loop import Answered, Loop
from nalar.agent.speech import Asked, Message, Speaker, Usage
from nalar.cli.chat_screen import Screen, cost_usd
from nalar.config import UserError
from nalar.disk import disk_errors, write_atomic
from nalar.sandbox.answering import Answering
from nalar.sandbox.config import ToolName, ToolsConfig
from nalar.sandbox.tools import Tool, open_tools

MAX_FILE_BYTES = 50_000_000
_KIND = "nalar chat"
CHAT_LIMITS = ToolsConfig(max_calls=64, output_chars=200_000, wall_s=600)
"""Of one reply, where tools were asked for by name; a run's own tools have the run's limits."""
MAX_OUTPUT_CHARS = 4000
"""Of one program, where tools were asked for by name."""


@dataclass
class Spent:
    """Over all replies of a session."""

    replies: int = 0
    usage: Usage = field(default_factory=Usage)
    wall_s: float = 0.0
    cost_usd: float | None = None


class Session:
    """Asks, shows, remembers."""

    def __init__(
        self,
        speaker: Speaker,
        screen: Screen,
        asked: Asked,
        *,
        tools: Mapping[str, Tool],
        limits: ToolsConfig,
        named_limits: ToolsConfig = CHAT_LIMITS,
        seed: int,
        keeps_history: bool,
        name: str,
    ) -> None:
        self.speaker, self.screen, self.name = speaker, screen, name
        self.asked = asked
        self.tools, self.limits, self._named_limits = tools, limits, named_limits
        self.seed, self.keeps_history = seed, keeps_history
        self.system: str | None = None
        self.messages: list[Message] = []
        """Without the system's."""
        self.spent = Spent()

    def ask(self, prompt: str) -> Answered:
        """One reply, shown as it comes. An interrupt goes on up; what had been said stays in the conversation."""
        if not self.keeps_history:
            self.messages = []
        question = {"role": "user", "content": clean(prompt)}
        loop = Loop(
            self.speaker,
            [*self._system(), *self._history(), question],
            dataclasses.replace(self.asked, seed=self.seed + self.spent.replies, tools=self.tools),
            Answering(self.tools, self.limits),
        )
        start = time.monotonic()
        try:
            said = self.screen.show(loop.run())
        except KeyboardInterrupt:
            broken_off = loop.break_off()
            if broken_off:
                self.messages += [question, *broken_off]
            raise
        finally:
            self.spent.replies += 1
        self.messages += [question, *loop.said]
        self._count(said, time.monotonic() - start)
        return said

    def _count(self, said: Answered, wall_s: float) -> None:
        self.spent.usage += said.usage
        self.spent.wall_s += wall_s
        cost = cost_usd(said, self.screen.prices)
        if cost is not None:
            self.spent.cost_usd = (self.spent.cost_usd or 0.0) + cost
        self.screen.footer(said, wall_s)

    def retry(self) -> Answered:
        """Ask the latest question again, by another seed; UserError where there is none."""
        places = [i for i, one in enumerate(self.messages) if one["role"] == "user"]
        if not places:
            raise UserError(at="/retry", got="no question yet", want="a reply to ask for again")
        kept, question = self.messages[: places[-1]], self.messages[places[-1]]["content"]
        before, self.messages = self.messages, kept
        try:
            return self.ask(question)
        except UserError:
            self.messages = before
            raise

    def take_tools(self, names: tuple[ToolName, ...]) -> None:
        """In place of those there were. UserError where this machine cannot run one."""
        self.tools, self.limits = chat_tools(names), self._named_limits

    def _system(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _history(self) -> list[Message]:
        """Thoughts of turns that called no tools are not sent again: R1's own template drops them."""
        return [one for turn in _turns(self.messages) for one in _without_spent_thoughts(turn)]

    def save(self, path: Path) -> None:
        """UserError where the file is one that no chat wrote."""
        if path.exists():
            read_chat(path)
        chat = {
            "kind": _KIND,
            "model": self.name,
            "system": self.system,
            "messages": self.messages,
        }
        with disk_errors(path):
            write_atomic(path, json.dumps(chat, ensure_ascii=False, indent=2).encode() + b"\n")

    def load(self, path: Path) -> None:
        """Go on with a saved conversation, whose history then counts."""
        chat = read_chat(path)
        self.system = chat.system
        self.messages = [one.model_dump(exclude_unset=True) for one in chat.messages]
        self.keeps_history = True


def chat_tools(names: tuple[ToolName, ...]) -> dict[str, Tool]:
    """Tools asked for by name. UserError where this machine cannot run one."""
    return open_tools(ToolsConfig(names=names, output_chars=MAX_OUTPUT_CHARS))


def _turns(messages: list[Message]) -> list[list[Message]]:
    turns: list[list[Message]] = []
    for message in messages:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


def _without_spent_thoughts(turn: list[Message]) -> list[Message]:
    if any(one.get("tool_calls") for one in turn):
        return turn
    return [{k: v for k, v in one.items() if k != "reasoning_content"} for one in turn]


def clean(text: str) -> str:
    """Bytes of a terminal that are no UTF-8 arrive as lone surrogates, which no tokenizer takes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class SavedMessage(BaseModel):
    """One message of a saved conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    role: Literal["user", "assistant", "tool"]
    content: str
    reasoning_content: str = ""
    tool_calls: list[dict[str, Any]] = Field(default_factory=list)
    tool_call_id: str = ""
    name: str = ""


class SavedChat(BaseModel):
    """What `/save` writes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["nalar chat"]
    model: str
    system: str | None
    messages: list[SavedMessage]


def read_chat(path: Path) -> SavedChat:
    """UserError where a file is no saved conversation."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(
                at=str(path), got="a larger file", want=f"at most {MAX_FILE_BYTES} bytes"
            )
        return SavedChat.model_validate_json(path.read_bytes())
    except OSError as error:
        got = error.strerror or str(error)
        raise UserError(at=str(path), got=got, want="a file that /save wrote") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            at=str(path),
            got=f"no conversation ({'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']})",
            want="a file that /save wrote",
            hint="/save writes to any other name",
        ) from error
