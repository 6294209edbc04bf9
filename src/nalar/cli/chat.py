"""`nalar chat`: talk to a model in the terminal, its thought apart from its answer."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from pydantic import Field

from nalar.agent.api import ChatApi
from nalar.agent.loop import Answered
from nalar.agent.speech import Asked, Speaker
from nalar.cli import flags
from nalar.cli.chat_commands import COMMANDS, Quit, is_command, obey, tool_names
from nalar.cli.chat_input import (
    edit_lines,
    is_pasted,
    next_prompt,
    pipe_reader,
    terminal_reader,
)
from nalar.cli.chat_local import LocalSpeaker
from nalar.cli.chat_screen import Screen, cost_usd
from nalar.cli.chat_session import CHAT_LIMITS, Session, chat_tools, clean
from nalar.cli.choice import chosen_model, evals_of
from nalar.cli.output import Document, Output
from nalar.cli.prices import price_table
from nalar.config import UserError
from nalar.endpoint import EndpointConfig
from nalar.pipeline.config import RunConfig, SftConfig, TaskRunConfig
from nalar.pipeline.r1_config import R1Config
from nalar.sandbox.config import ToolsConfig
from nalar.sandbox.tools import open_tools
from nalar.server.prices_config import PriceTable

KEY_VARIABLE = "NALAR_API_KEY"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """Talk to MODEL, here or behind --url. The thought is shown dim, the answer after it; /help lists commands.

    Without a terminal each line of the standard input is a prompt.

    Try, with a name that `nalar runs list` shows:

    nalar chat zero-cpu-1 --prompt "make 20 from 10 5 2"
    """

    model: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="MODEL")] = None
    """A run's folder (a name under runs/, or a path), or a folder that is a model; with --url what the server calls it,
    None: the first that it names."""
    url: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Of an OpenAI-style API, such as http://127.0.0.1:8000/v1. None: the model is on this machine."""
    api_key: Annotated[str | None, tyro.conf.arg(metavar="KEY")] = None
    """For --url. Others on this machine can read a command line: NALAR_API_KEY, which None reads, is safer."""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Answer this and end. None: ask."""
    system: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Said ahead of all, to models that know such a message."""
    history: bool | None = None
    """Whether the model sees what was said before. None: yes, but for runs whose tasks are prompts that stand alone."""
    tools: Annotated[str | None, tyro.conf.arg(metavar="NAMES")] = None
    """What the model may call, such as python,calculator. None: as its run has it."""
    max_calls: Annotated[int, tyro.conf.arg(metavar="INT")] = CHAT_LIMITS.max_calls
    """With --tools or /tools: calls in one reply that are run; those beyond it are answered by an error."""
    no_thinking: bool = False
    """Let the model answer at once."""
    thinking_budget: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens of a thought at most: then it is closed, and the answer follows. None: no limit but the cap."""
    temperature: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """0: greedy, at which a small model loops. None: 1, or what the server takes."""
    max_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Cap on what is said at once: thought and answer, or up to a call. None: as its run has it, else the context."""
    seed: int = 0
    """Sets the samples; the n-th prompt has a stream of its own."""
    prices: Annotated[tuple[float, float, float] | None, tyro.conf.arg(metavar="IN CACHED OUT")] = (
        None
    )
    """USD for a million tokens, such as 0.56 0.14 2.24, where the server names no cost."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


class Reply(Document):
    """What `chat --json` prints for the one prompt that it was given."""

    prompt: str
    thought: str
    answer: str
    finish_reason: str
    """`stop`, `length`, `tool_calls` (without tools), `max_calls`, or what a server said."""
    tokens: int
    """Thought, calls and answer."""
    calls: list[dict[str, str | None]] = Field(default_factory=list)
    """Of tools: name, arguments and output of each; null: nobody answered."""
    prompt_tokens: int = 0
    """Of all turns together, as each read the conversation anew."""
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None
    """None: nobody named a price."""


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    asked = flags.parse(Chat, args, verb="chat")
    _check(asked)
    prices = price_table(asked.prices)
    if asked.url is None and asked.model is not None:
        chosen_model(asked.model)  # a wrong name is told before a prompt is waited for
    prompt = asked.prompt
    if prompt is None and asked.json:
        prompt = sys.stdin.readline().rstrip("\n")
    if prompt is not None and not prompt.strip():
        raise UserError(
            at="--prompt", got="no text", want="a prompt, such as 'make 20 from 10 5 2'"
        )
    is_seen = prompt is None and sys.stdin.isatty() and out.console.is_terminal
    session = _session(asked, Screen(out, prices=prices, with_footer=is_seen))
    if prompt is not None:
        out.document(_document(prompt, session.ask(prompt), prices))
        return 0
    _converse(session, out)
    return 0


def _check(asked: Chat) -> None:
    temperature, budget = asked.temperature, asked.thinking_budget
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise UserError(at="--temperature", got=str(temperature), want="0 (greedy) or more")
    for name in ("max_tokens", "max_calls"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise UserError(at=f"--{name.replace('_', '-')}", got=str(value), want="at least 1")
    if budget is not None and (budget < 0 or asked.no_thinking):
        got = f"{budget} with --no-thinking" if asked.no_thinking else str(budget)
        want = "no --no-thinking beside it" if asked.no_thinking else "0 or more"
        raise UserError(at="--thinking-budget", got=got, want=want)
    if asked.model is None and asked.url is None:
        raise UserError(
            at="MODEL",
            got="no name",
            want="a run, a model's folder, or --url and a server",
            hint="`nalar runs list` shows the runs there are",
        )
    if asked.api_key is not None and asked.url is None:
        raise UserError(at="--api-key", got="no --url", want="a server that asks for it")


def _session(asked: Chat, screen: Screen) -> Session:
    """The model, and how it is to be asked."""
    wished = Asked(
        thinking=False if asked.no_thinking else None,
        thinking_budget=asked.thinking_budget,
        temperature=asked.temperature,
        max_tokens=asked.max_tokens,
    )
    limits = named_limits = CHAT_LIMITS.model_copy(update={"max_calls": asked.max_calls})
    names = None if asked.tools is None else tool_names(asked.tools, at="--tools")
    if asked.url is not None:
        speaker, name = _remote(asked, asked.url)
        tools = chat_tools(names or ())
        keeps_history = asked.history is not False
    else:
        assert asked.model is not None
        folder, config = chosen_model(asked.model)
        if config is not None and asked.max_tokens is None:
            wished = dataclasses.replace(wished, max_tokens=evals_of(config).max_tokens)
        if names is None:
            limits = config.tools if isinstance(config, TaskRunConfig) else ToolsConfig()
        tools = open_tools(limits) if names is None else chat_tools(names)
        keeps_history = _has_dialogues(config) if asked.history is None else asked.history
        speaker, name = LocalSpeaker.load(folder, config, with_tools=bool(tools)), asked.model
    session = Session(
        speaker,
        screen,
        wished,
        tools=tools,
        limits=limits,
        named_limits=named_limits,
        seed=asked.seed,
        keeps_history=keeps_history,
        name=name,
    )
    session.system = asked.system
    return session


def _has_dialogues(config: RunConfig | None) -> bool:
    """Whether a model may have learned from more than one prompt at a time: tasks are prompts that stand alone."""
    return config is None or isinstance(config, (SftConfig, R1Config))


def _remote(asked: Chat, url: str) -> tuple[Speaker, str]:
    if not url.startswith(("http://", "https://")):
        raise UserError(
            at="--url", got=repr(url), want="an address such as http://127.0.0.1:8000/v1"
        )
    key = asked.api_key or os.environ.get(KEY_VARIABLE)
    name = asked.model
    if name is None:
        named = ChatApi(EndpointConfig(base_url=url, model="?"), key).models()
        if not named:
            raise UserError(at=url, got="no model", want="a server that has one")
        name = named[0]
    return ChatApi(EndpointConfig(base_url=url, model=name, timeout_s=600), key), name


def _document(prompt: str, said: Answered, prices: PriceTable | None) -> Reply:
    return Reply(
        prompt=clean(prompt),
        thought=said.thought,
        answer=said.answer,
        finish_reason=said.finish_reason,
        tokens=said.usage.completion_tokens,
        calls=[
            {"name": call.name, "arguments": call.arguments, "output": output}
            for call, output in said.calls
        ],
        prompt_tokens=said.usage.prompt_tokens,
        cached_tokens=said.usage.cached_tokens,
        reasoning_tokens=said.usage.reasoning_tokens,
        cost_usd=cost_usd(said, prices),
    )


def _converse(session: Session, out: Output) -> None:
    """A reply to each prompt until the input ends. Ctrl-C ends a reply, or what is being typed; twice in a row, all."""
    is_terminal = sys.stdin.isatty()
    read, has_more = pipe_reader(), lambda: False
    if is_terminal:
        read, has_more = terminal_reader(), is_pasted
        edit_lines(f"/{name}" for name in COMMANDS)
        each = "the conversation goes on" if session.keeps_history else "each prompt stands alone"
        out.text(f"{session.name}: {each}. /help lists commands, Ctrl-D ends.", style="dim")
    was_stopped = False
    while True:
        try:
            prompt = next_prompt(read, has_more)
        except KeyboardInterrupt:
            if not is_terminal or was_stopped:
                raise
            was_stopped = True
            out.text("\nCtrl-D or /quit ends the chat", style="dim")
            continue
        if prompt is None:
            return
        was_stopped = False
        if prompt.strip() and not _answer(session, prompt, out, is_terminal=is_terminal):
            return


def _answer(session: Session, prompt: str, out: Output, *, is_terminal: bool) -> bool:
    """Obey or reply; False where the chat is over. What goes wrong ends the reply, not the chat of a person."""
    try:
        if is_command(prompt):
            said = obey(session, prompt)
            if said:
                out.text(said, style="dim")
        else:
            session.ask(prompt.removeprefix("/") if prompt.startswith("//") else prompt)
    except Quit:
        return False
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        out.text("\n[stopped]", style="yellow")
    except UserError as error:
        if not is_terminal:
            raise
        out.text(str(error), style="yellow")
    return True
