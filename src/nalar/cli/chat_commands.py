"""Slash commands of a chat: what each is called, takes and does."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from nalar.cli.chat_session import Session
from nalar.config import UserError, nearest
from nalar.sandbox.config import ToolName

_COMMAND = re.compile(r"/([a-z_]*)(?:\s+(.*))?", re.DOTALL)
_NONE = ("off", "none", "default")


class Quit(Exception):
    """The chat is over."""


@dataclass(frozen=True)
class Command:
    """One command."""

    takes: str
    what: str
    do: Callable[[Session, str], str | None]
    """Given what stands behind the name; returns what is to be said, None: nothing."""


def is_command(line: str) -> bool:
    """A line such as /new. A path (/etc/hosts) is none; two slashes begin a prompt with one."""
    return bool(_COMMAND.fullmatch(line.strip()))


def obey(session: Session, line: str) -> str | None:
    """Do what a command says; UserError where it cannot be done, Quit where it ends the chat."""
    found = _COMMAND.fullmatch(line.strip())
    assert found is not None, line
    name, rest = found[1], (found[2] or "").strip()
    command = COMMANDS.get(name)
    if command is None:
        close = nearest(name, COMMANDS)
        raise UserError(
            at=f"/{name}",
            got="no such command",
            want="one that /help lists; // begins a prompt with a slash",
            hint=f"/{close}" if close else "/help",
        )
    if rest and not command.takes:
        raise UserError(at=f"/{name}", got=repr(rest), want="nothing behind it")
    return command.do(session, rest)


def _help(_session: Session, _rest: str) -> str:
    width = max(len(f"/{name} {command.takes}") for name, command in COMMANDS.items())
    lines = [
        f"{f'/{name} {command.takes}':<{width}}  {command.what}"
        for name, command in COMMANDS.items()
    ]
    return "\n".join(
        [
            *lines,
            '"""                  begins and ends a prompt of several lines; so does \\ at a line\'s end',
            "Ctrl-C stops a reply, Ctrl-D ends the chat",
        ]
    )


def _new(session: Session, _rest: str) -> str:
    session.messages = []
    return "a new conversation"


def _thinking(session: Session, rest: str) -> str:
    if rest in ("on", "off", "default"):
        thinking = {"on": True, "off": False, "default": None}[rest]
        _ask(session, thinking=thinking, thinking_budget=None)
    else:
        budget = _whole("/thinking", rest, least=0, words="on, off, default or tokens at most")
        _ask(session, thinking=True, thinking_budget=budget)
    return f"thinking {rest}" + ("" if rest.isalpha() else " tokens at most")


def _system(session: Session, rest: str) -> str:
    if not rest:
        return session.system or "no system message"
    session.system = None if rest in _NONE else rest
    return "system message set" if session.system else "no system message"


def _temperature(session: Session, rest: str) -> str:
    try:
        value = float(rest)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(at="/temperature", got=repr(rest), want="0 (greedy) or more")
    _ask(session, temperature=value)
    return f"temperature {value:g}"


def _max_tokens(session: Session, rest: str) -> str:
    cap = None if rest in _NONE else _whole("/max_tokens", rest, least=1, words="a cap, or off")
    _ask(session, max_tokens=cap)
    return f"at most {cap} tokens a turn" if cap else "no cap but the model's context"


def _seed(session: Session, rest: str) -> str:
    session.seed = _whole("/seed", rest, least=0, words="a whole number") - session.spent.replies
    return f"the next reply has the seed {rest}"


def _tools(session: Session, rest: str) -> str:
    if not rest:
        return ", ".join(session.tools) or "no tools"
    names = () if rest in _NONE else tool_names(rest, at="/tools")
    session.take_tools(names)
    return f"tools: {', '.join(session.tools)}" if session.tools else "no tools"


def _history(session: Session, rest: str) -> str:
    if rest not in ("on", "off"):
        raise UserError(at="/history", got=repr(rest), want="on or off")
    session.keeps_history = rest == "on"
    return "the model sees what was said" if session.keeps_history else "each prompt stands alone"


def _retry(session: Session, _rest: str) -> None:
    session.retry()


def _save(session: Session, rest: str) -> str:
    session.save(_path("/save", rest))
    return f"{len(session.messages)} messages in {rest}"


def _load(session: Session, rest: str) -> str:
    session.load(_path("/load", rest))
    return f"{len(session.messages)} messages from {rest}"


def _usage(session: Session, _rest: str) -> str:
    spent, usage = session.spent, session.spent.usage
    rate = f", {usage.completion_tokens / spent.wall_s:.0f} a second" if spent.wall_s else ""
    cost = "" if spent.cost_usd is None else f" · {spent.cost_usd:.6f} USD"
    return (
        f"{spent.replies} replies · read {usage.prompt_tokens} tokens ({usage.cached_tokens} cached)"
        f" · written {usage.completion_tokens} ({usage.reasoning_tokens} thought{rate}){cost}"
    )


def _quit(_session: Session, _rest: str) -> None:
    raise Quit


def _ask(session: Session, **changes: object) -> None:
    session.asked = dataclasses.replace(session.asked, **changes)  # type: ignore[arg-type]


def _whole(at: str, text: str, *, least: int, words: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) >= least):
        raise UserError(at=at, got=repr(text), want=words)
    return int(text)


def _path(at: str, text: str) -> Path:
    if not text:
        raise UserError(at=at, got="no name", want="a file", hint=f"{at} chat.json")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(at=at, got=text, want="a file's path") from error


def tool_names(text: str, *, at: str) -> tuple[ToolName, ...]:
    """Names with commas or spaces between; UserError where one is no tool."""
    known: Sequence[ToolName] = get_args(ToolName)
    words = list(dict.fromkeys(filter(None, re.split(r"[,\s]+", text))))
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        close = nearest(unknown[0], known) if unknown else None
        raise UserError(
            at=at,
            got=repr(unknown[0] if unknown else text),
            want=f"some of {', '.join(known)}",
            hint=close and f"did you mean {close}?",
        )
    return tuple(name for name in known if name in words)


COMMANDS = {
    "help": Command("", "this list", _help),
    "new": Command("", "begin a new conversation", _new),
    "retry": Command("", "ask the latest question again", _retry),
    "history": Command("on|off", "whether the model sees what was said before", _history),
    "thinking": Command("on|off|default|N", "think, or not, or N tokens at most", _thinking),
    "system": Command("TEXT|off", "what is said ahead of all; alone: show it", _system),
    "temperature": Command("X", "0: greedy", _temperature),
    "max_tokens": Command("N|off", "cap on a turn", _max_tokens),
    "seed": Command("N", "of the next reply", _seed),
    "tools": Command("NAMES|off", "what the model may call; alone: show it", _tools),
    "save": Command("FILE", "write the conversation", _save),
    "load": Command("FILE", "go on with one that was saved", _load),
    "usage": Command("", "tokens and cost so far", _usage),
    "quit": Command("", "end; so does Ctrl-D", _quit),
}
