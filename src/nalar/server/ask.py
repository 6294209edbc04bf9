"""What is asked of the model and what it says, whichever API it came by. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nalar.engine.sequence import SamplingParams

Message = Mapping[str, Any]
"""OpenAI's chat form, checked and normalised: role system, user, assistant or tool; content is text. An assistant may
have reasoning_content and tool_calls, a list of {id, type: "function", function: {name, arguments: text}}; a tool has
tool_call_id, and may have name."""


@dataclass(frozen=True)
class Thinking:
    enabled: bool | None = None
    """None: as the model's template has it by default."""
    budget_tokens: int | None = None
    """None: no limit."""


@dataclass(frozen=True)
class ToolSpec:
    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema."""
    strict: bool = False


@dataclass(frozen=True)
class ToolChoice:
    mode: Literal["none", "auto", "required", "named"]
    name: str | None = None


@dataclass(frozen=True)
class ResponseFormat:
    kind: Literal["text", "json_object", "json_schema"]
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Ask:
    """One request to the model."""

    messages: tuple[Message, ...] | None
    """None: prompt_ids are given."""
    prompt_ids: tuple[int, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = ToolChoice("auto")
    parallel_tool_calls: bool = True
    thinking: Thinking = Thinking()
    response_format: ResponseFormat = ResponseFormat("text")
    params: SamplingParams = field(default_factory=SamplingParams)
    """But for max_tokens, and thinking and stop_token_ids, which are the dialect's."""
    max_tokens: int | None = None
    """None: the rest of the context."""
    stop: tuple[str, ...] = ()
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    cache_salt: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One drawn id, and the likeliest beside it."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What one choice says, in order: all that writers of any API see, streamed or not."""

    choice: int
    kind: Literal["thought", "answer", "call", "arguments", "call_end"]
    text: str = ""
    """Of thought, answer, arguments."""
    call: int = 0
    """Of call, arguments, call_end: index of the call within the choice."""
    call_id: str = ""
    name: str = ""
    """Of call."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the ids whose text ended here."""


@dataclass(frozen=True, slots=True)
class Ended:
    choice: int
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]
    stop_reason: str | int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_usd: float | None
