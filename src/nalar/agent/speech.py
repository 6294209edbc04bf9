"""What a model says, piece by piece and turn by turn, whatever it runs on. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from nalar.sandbox.tools import Tool

Message = Mapping[str, Any]
"""OpenAI's chat form: `role` system, user, assistant or tool, and `content`; an assistant's may have
`reasoning_content` and `tool_calls`, a tool's has `tool_call_id`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text as it comes. call: the name of a tool that is called, then its arguments; output: what it gave."""

    kind: Literal["thought", "answer", "call", "arguments", "output"]
    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What was read and written, in tokens; cached ones are among those of the prompt, thoughts among the completion.

    cost_usd: as the server says. None: it does not.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None

    def __add__(self, other: "Usage") -> "Usage":
        costs = [cost for cost in (self.cost_usd, other.cost_usd) if cost is not None]
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            sum(costs) if costs else None,
        )


@dataclass(frozen=True)
class Asked:
    """How the next turn is to be. None: as the model, or its server, has it."""

    thinking: bool | None = None
    thinking_budget: int | None = None
    """Tokens of thought at most, None: no limit."""
    temperature: float | None = None
    max_tokens: int | None = None
    """Of one turn: up to a call of tools, or to the end of the answer."""
    seed: int | None = None
    tools: Mapping[str, Tool] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """What a model said until it stopped: for good, or because it waits for its calls."""

    thought: str
    answer: str
    calls: tuple[Call, ...]
    finish_reason: str
    """`stop`, `length`, `tool_calls`, `content_filter`."""
    usage: Usage = Usage()

    def message(self, *, thinks: bool) -> Message:
        """As it goes into the conversation. thinks: whether an empty thought is one too, as a call within it wants."""
        said: dict[str, Any] = {"role": "assistant", "content": self.answer}
        if self.thought or thinks:
            said["reasoning_content"] = self.thought
        if self.calls:
            said["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.calls
            ]
        return said


class Speaker(Protocol):
    """A model, here or behind an address."""

    def say(self, messages: Sequence[Message], asked: Asked) -> Iterator[Piece | Turn]:
        """One turn, piece by piece; the whole comes last. UserError where it cannot be asked, or where what it has to
        read is more than it can."""
        ...
