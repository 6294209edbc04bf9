"""`nalar chat`: talk to a model in the terminal, its thought apart from its answer."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

import tyro
from pydantic import Field
from rich.text import Text

from nalar.cli import flags
from nalar.cli.choice import chosen_model, evals_of
from nalar.cli.output import Document, Output
from nalar.config import UserError
from nalar.evals.text import printable
from nalar.pipeline.config import RunConfig, TaskRunConfig
from nalar.sandbox.config import ToolsConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """Talk to MODEL. The thought is shown dim, the answer after it. Each line is a conversation of its own.

    Without a terminal each line of the standard input is a prompt.

    Try, with a name that `nalar runs list` shows:

    nalar chat zero-cpu-1 --prompt "make 20 from 10 5 2"
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder (a name under runs/, or a path), or a folder that is a model."""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Answer this and end. None: ask."""
    no_thinking: bool = False
    """Let the model answer at once."""
    thinking_budget: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens of a thought at most: then it is closed, and the answer follows. None: no limit but the cap."""
    temperature: float = 1.0
    """0: greedy, which at this size loops."""
    max_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Cap on a response, thought and answer together. None: as the run trained it."""
    seed: int = 0
    """Sets the samples; the n-th prompt has a stream of its own."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


class Reply(Document):
    """What `chat --json` prints for the one prompt that it was given."""

    prompt: str
    thought: str
    answer: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    calls: list[dict[str, str | None]] = Field(default_factory=list)
    """Of tools: name, arguments and output of each."""


class Delta(Protocol):
    """Text that one token added."""

    @property
    def thought(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def call(self) -> str: ...
    @property
    def output(self) -> str: ...


class Speaker(Protocol):
    """Answers a prompt piece by piece; the last piece is the whole."""

    def __call__(self, prompt: str, seed: int) -> Iterator[Delta | Reply]: ...


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    asked = flags.parse(Chat, args, verb="chat")
    if not 0 <= asked.temperature < float("inf"):
        raise UserError(at="--temperature", got=str(asked.temperature), want="0 (greedy) or more")
    if asked.max_tokens is not None and asked.max_tokens < 1:
        raise UserError(at="--max-tokens", got=str(asked.max_tokens), want="at least 1")
    _check_budget(asked)
    folder, config = chosen_model(asked.model)
    cap = asked.max_tokens or evals_of(config).max_tokens
    prompt = asked.prompt
    if prompt is None and asked.json:
        prompt = sys.stdin.readline().rstrip("\n")
    if prompt is not None and not prompt.strip():
        raise UserError(
            at="--prompt", got="no text", want="a prompt, such as 'make 20 from 10 5 2'"
        )
    speaker = _load(folder, config, asked, cap)
    if prompt is not None:
        out.document(say(speaker, prompt, asked.seed, out))
        return 0
    _converse(speaker, asked, out)
    return 0


def _check_budget(asked: Chat) -> None:
    budget = asked.thinking_budget
    if budget is not None and (budget < 0 or asked.no_thinking):
        got = f"{budget} with --no-thinking" if asked.no_thinking else str(budget)
        want = "no --no-thinking beside it" if asked.no_thinking else "0 or more"
        raise UserError(at="--thinking-budget", got=got, want=want)


def say(speaker: Speaker, prompt: str, seed: int, out: Output) -> Reply:
    """Stream one response to the screen."""
    was_thinking = was_output = False
    for piece in speaker(prompt, seed):
        if isinstance(piece, Reply):
            cut = " [cut by --max-tokens]" if piece.finish_reason == "length" else ""
            out.text(Text(cut, style="yellow"))
            return piece
        if piece.thought:
            _write(out, piece.thought, style="dim italic")
            was_thinking = True
        if piece.call or piece.output:
            if piece.output and not was_output:
                _write(out, " = ", style="dim")
            _write(out, piece.call or piece.output, style="cyan")
            was_thinking = True
        was_output = bool(piece.output)
        if piece.answer:
            if was_thinking:
                _write(out, "\n→ ", style="dim")
                was_thinking = False
            _write(out, piece.answer, style="bold")
    raise RuntimeError("the stream ended without its last piece")


def _converse(speaker: Speaker, asked: Chat, out: Output) -> None:
    """One response a line until the input ends. Ctrl-C in a response ends the response, at the prompt the chat."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        out.text(
            "Each line is a new conversation; Ctrl-D ends. Try: make 20 from 10 5 2", style="dim"
        )
    for number, prompt in enumerate(_prompts(is_terminal)):
        try:
            say(speaker, prompt, asked.seed + number, out)
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            out.text("")
        except UserError as error:  # a prompt that is too long ends the reply, not the chat
            if not is_terminal:
                raise
            out.text(str(error), style="yellow")


def _prompts(is_terminal: bool) -> Iterator[str]:
    while True:
        try:
            line = input("> ") if is_terminal else sys.stdin.readline()
        except EOFError:
            return
        if not line and not is_terminal:
            return
        if line.strip():
            yield line.rstrip("\n")


def _write(out: Output, text: str, *, style: str) -> None:
    # A model's bytes are not to be trusted with the terminal: what could be a control code is replaced, not sent.
    out.console.print(Text(printable(text), style=style), end="", soft_wrap=True)
    out.console.file.flush()


def _load(folder: Path, config: RunConfig | None, asked: Chat, cap: int) -> Speaker:
    from nalar.data.dialogue import Parser, encode_prompt
    from nalar.data.tool_use import ToolUse
    from nalar.engine.sequence import Request, SamplingParams
    from nalar.evals.protocol import thinking_params
    from nalar.pipeline.sampler import load_sampler  # imports torch
    from nalar.sandbox.tools import open_tools

    sampler, thinking = load_sampler(folder, config), not asked.no_thinking
    tokenizer = sampler.tokenizer
    limits = config.tools if isinstance(config, TaskRunConfig) else ToolsConfig()
    tools = open_tools(limits)

    def speak(prompt: str, seed: int) -> Iterator[Delta | Reply]:
        # Bytes of the command line that are no UTF-8 arrive as lone surrogates, which no tokenizer takes.
        text = prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        messages = [{"role": "user", "content": text}]
        prompt_ids = tuple(encode_prompt(tokenizer, messages, thinking=thinking))
        parser, ids = Parser(tokenizer, thinking=thinking), list[int]()
        tool_use = ToolUse(tokenizer, tools, limits) if tools else None
        thought, forced = thinking_params(tokenizer, asked.thinking_budget), list[int]()
        given: tuple[int, ...] | None = ()
        while given is not None and len(ids) + len(given) < cap:
            forced += range(len(ids), len(ids) + len(given))
            ids += given
            yield from map(parser.feed, given)
            params = SamplingParams(
                max_tokens=cap - len(ids),
                temperature=asked.temperature,
                stop_token_ids=tokenizer.stop_ids,
                seed=seed + len(ids),
                thinking=None
                if asked.thinking_budget is None
                else thought.after(thought.count(prompt_ids, ids, forced)),
            )
            for token_id, _ in sampler.engine.stream(Request((*prompt_ids, *ids), params)):
                ids.append(token_id)
                yield parser.feed(token_id)
            given = tool_use.reply(ids) if tool_use else None
        yield parser.flush()
        said = parser.result()
        yield Reply(
            prompt=text,
            thought=said.thought,
            answer=said.answer,
            finish_reason="stop" if ids[-1] in tokenizer.stop_ids else "length",
            tokens=len(ids),
            calls=[dataclasses.asdict(call) for call in said.calls],
        )

    return speak
