"""What the server's parts hand each other: a request to the model, whichever API it came by, and what the model says.

Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from nalar.engine.sequence import PromptLogprob, SamplingParams, TopLogprobs

Message = Mapping[str, Any]
"""OpenAI's chat form, checked: `role` system, user, assistant or tool ("developer" became "system"); `content` a str,
parts of text joined. An assistant's may have `reasoning_content` (str) and `tool_calls`, a list of
{id, type: "function", function: {name, arguments: str}}; a tool's has `tool_call_id`, and `name` where it was given."""


@dataclass(frozen=True)
class Thinking:
    """Whether and how long the model may think."""

    enabled: bool | None = None
    """None: as the model's template has it."""
    budget_tokens: int | None = None
    """None: no limit."""


@dataclass(frozen=True)
class ToolSpec:
    """A function that the model may call."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of its arguments, an object."""
    strict: bool = False


@dataclass(frozen=True)
class ToolChoice:
    """Which calls may or must come."""

    mode: Literal["none", "auto", "required", "named"]
    name: str | None = None
    """Of the one function, where it is named."""


@dataclass(frozen=True)
class ResponseFormat:
    """What the answer must look like; thoughts are free."""

    kind: Literal["text", "json_object", "json_schema"]
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class GrammarSpec:
    """A grammar of the answer, for `data/grammar.py: Grammars`."""

    kind: Literal["lark", "json_schema", "regex"]
    text: str
    """A schema as its JSON."""
    about: str = "grammar"
    """What of the request it follows from, for errors."""


@dataclass(frozen=True)
class Ask:
    """One request to the model."""

    messages: tuple[Message, ...] | None
    """None: `prompt_ids` are given."""
    prompt_ids: tuple[int, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = ToolChoice("auto")
    parallel_tool_calls: bool = True
    thinking: Thinking = Thinking()
    response_format: ResponseFormat = ResponseFormat("text")
    params: SamplingParams = field(default_factory=SamplingParams)
    """But for `max_tokens`, `thinking` and the dialect's stop tokens, which `answer` fills in."""
    max_tokens: int | None = None
    """None: the rest of the context. 0: the prompt is scored, and nothing is said."""
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    """Go on behind the end of the turn, to the limit."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    cache_salt: str = ""
    priority: int = 0
    owner: str = ""
    """Whose it is, for the engine to share its rows fairly: the id of a key."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One drawn token, by the model's own distribution."""

    token_id: int
    logprob: float
    top: TopLogprobs = ()


class Piece(NamedTuple):
    """What one choice says next, in order: all that the writers of any API see, streamed or not. A tuple, since one is
    made for every event of every stream."""

    choice: int
    kind: Literal["thought", "answer", "call", "arguments", "call_end"]
    text: str = ""
    """Of thought, answer or arguments."""
    call: int = 0
    """Index of the call within the choice."""
    call_id: str = ""
    name: str = ""
    """Both of kind "call"."""
    token_ids: tuple[int, ...] = ()
    """Those whose text ended here."""
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Scored:
    """The prompt's own tokens by the model's distribution, where a request wants them. Before its choice has ended."""

    choice: int
    logprobs: tuple[PromptLogprob | None, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """One choice is complete."""

    choice: int
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]
    stop_reason: str | int | None = None
    """The stop string, or the stop token of the request, that ended it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a whole request, all choices together. Always the last that comes."""

    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, those found in the cache."""
    completion_tokens: int
    """Thoughts included."""
    reasoning_tokens: int
    cost_usd: float | None = None


Said = Piece | Scored | Ended | Usage
