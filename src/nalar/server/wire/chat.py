"""`/v1/chat/completions`: a body to an ask, and what is said to chunks; the whole reply is a fold over them.

Imports no torch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import Field

from nalar.server.ask import (
    Ask,
    Ended,
    Piece,
    ResponseFormat,
    Said,
    TokenLogprob,
    ToolChoice,
    ToolSpec,
    Usage,
)
from nalar.server.config import ServerConfig
from nalar.server.wire.body import Wire
from nalar.server.wire.errors import bad_request
from nalar.server.wire.messages_in import CONTROL, WireMessage, messages_of
from nalar.server.wire.sampling import MAX_TOP_LOGPROBS, MOST_TOKENS, SamplingFields, finite
from nalar.server.wire.thinking import ThinkingFields
from nalar.server.wire.usage import usage_json


class Bytes(Protocol):
    def token_bytes(self, token_id: int) -> bytes: ...


class WireFunctionSpec(Wire):
    name: str = Field(min_length=1, max_length=256)
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool = False


class WireTool(Wire):
    type: Literal["function"] = "function"
    function: WireFunctionSpec


class ChatRequest(ThinkingFields, SamplingFields):
    messages: list[WireMessage]
    response_format: dict[str, Any] | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Wins over `max_tokens`."""
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[WireTool] = Field(default_factory=list, max_length=512)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: Any = None
    reasoning: Any = None
    include_reasoning: bool = True
    """False: the model thinks, and the reply leaves it out."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_ids: bool = False

    def ask(self, config: ServerConfig, seed: int) -> Ask:
        specs = (tool.function for tool in self.tools)
        tools = tools_of(ToolSpec(f.name, f.description, f.parameters, f.strict) for f in specs)
        thinking = self.thinking_asked(
            config,
            reasoning=self.reasoning,
            reasoning_effort=self.reasoning_effort,
            messages=self._controls(),
        )
        logprobs = self.top_logprobs if self.logprobs else None
        return Ask(
            messages=messages_of(self.messages),
            tools=tools,
            tool_choice=choice_of(self.tool_choice, tools),
            parallel_tool_calls=self.parallel_tool_calls,
            thinking=thinking,
            response_format=format_of(self.response_format),
            params=self.params(config, seed, logprobs=logprobs),
            max_tokens=self.max_completion_tokens or self.max_tokens or config.default_max_tokens,
            stop=self.stops,
            ignore_eos=self.ignore_eos,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            template_kwargs=self.template_kwargs,
            cache_salt=self.cache_salt,
            priority=self.priority,
        )

    def _controls(self) -> list[dict[str, Any]]:
        """Messages that switch thinking."""
        return [{"role": m.role, "content": m.content} for m in self.messages if m.role == CONTROL]


def tools_of(specs: Iterable[ToolSpec]) -> tuple[ToolSpec, ...]:
    """ApiError (400) where two have one name."""
    tools = tuple(specs)
    if len({tool.name for tool in tools}) < len(tools):
        raise bad_request("tools: two of one name", "tools")
    return tools


def choice_of(given: str | dict[str, Any] | None, tools: Sequence[ToolSpec]) -> ToolChoice:
    if given is None or given == "auto":
        return ToolChoice("auto")
    if given == "none":
        return ToolChoice("none")
    if given == "required":
        if not tools:
            raise bad_request("tool_choice: required, and there are no tools", "tool_choice")
        return ToolChoice("required")
    function = given.get("function", given) if isinstance(given, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name not in [tool.name for tool in tools]:
        want = "none, auto, required, or a function of tools"
        raise bad_request(f"tool_choice: wanted {want}", "tool_choice")
    return ToolChoice("named", name)


def format_of(given: dict[str, Any] | None) -> ResponseFormat:
    kind = (given or {}).get("type", "text")
    if kind == "text":
        return ResponseFormat("text")
    if kind == "json_object":
        return ResponseFormat("json_object")
    assert given is not None
    entry = given.get("json_schema")
    schema = entry.get("schema", {}) if isinstance(entry, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict):
        want = "type text, json_object, or json_schema with a schema"
        raise bad_request(f"response_format: wanted {want}", "response_format")
    return ResponseFormat("json_schema", schema)


def logprob_json(one: TokenLogprob, tokenizer: Bytes) -> dict[str, Any]:
    """A token with those that were likely beside it."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        written = tokenizer.token_bytes(token_id)
        text = written.decode("utf-8", "replace")
        return {"token": text, "logprob": finite(logprob), "bytes": list(written)}

    return entry(one.token_id, one.logprob) | {"top_logprobs": [entry(*other) for other in one.top]}


@dataclass(frozen=True)
class ChatWriter:
    """What stands in every chunk of one reply."""

    id: str
    created: int
    model: str
    tokenizer: Bytes
    asked: ChatRequest
    reasoning_key: bool

    def chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        document = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            document["usage"] = None if usage is None else usage_json(usage)
        return document

    def opening(self) -> Iterator[dict[str, Any]]:
        """The role, once for every choice."""
        for index in range(self.asked.n):
            yield self._choice(index, {"role": "assistant", "content": ""})

    def choices(self, said: Said) -> Iterator[dict[str, Any]]:
        """What one thing that is said adds to the choices of the reply."""
        if isinstance(said, Ended):
            yield self._choice(said.choice, {}) | {
                "finish_reason": said.finish_reason,
                "stop_reason": said.stop_reason,
            }
        elif isinstance(said, Piece):
            delta = self._delta(said)
            has_logprobs = self.asked.logprobs and said.kind == "answer"
            if delta is not None or (self.asked.return_token_ids and said.token_ids):
                choice = self._choice(said.choice, delta or {})
                if has_logprobs:
                    content = [logprob_json(one, self.tokenizer) for one in said.logprobs]
                    choice["logprobs"] = {"content": content, "refusal": None}
                if self.asked.return_token_ids:
                    choice["token_ids"] = list(said.token_ids)
                yield choice

    @property
    def plain_kinds(self) -> frozenset[str]:
        """Kinds of pieces whose chunks differ in nothing but their text."""
        if self.asked.logprobs or self.asked.return_token_ids:
            return frozenset()
        said = {"answer", "arguments", "thought"}
        return frozenset(said if self.asked.include_reasoning else said - {"thought"})

    def _choice(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _delta(self, piece: Piece) -> dict[str, Any] | None:
        match piece.kind:
            case "thought":
                names = (
                    ("reasoning_content", "reasoning")
                    if self.reasoning_key
                    else ("reasoning_content",)
                )
                return dict.fromkeys(names, piece.text) if self.asked.include_reasoning else None
            case "answer":
                return {"content": piece.text}
            case "call":
                function = {"name": piece.name, "arguments": ""}
                call = {"index": piece.call, "id": piece.call_id, "type": "function"}
                return {"tool_calls": [call | {"function": function}]}
            case "arguments":
                function = {"arguments": piece.text}
                return {"tool_calls": [{"index": piece.call, "function": function}]}
            case "call_end":
                return None

    def fold(self, choices: Sequence[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """The whole reply, of all choices that a stream would have had."""
        folded = [_Fold(index) for index in range(self.asked.n)]
        for choice in choices:
            folded[choice["index"]].add(choice)
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": [one.choice(self.asked) for one in folded],
            "usage": usage_json(usage),
        }


class _Fold:
    """One choice, put together from its chunks."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._texts: dict[str, list[str]] = {}
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        self._ids: list[int] = []
        self._end: dict[str, Any] = {"finish_reason": None, "stop_reason": None}

    def add(self, choice: dict[str, Any]) -> None:
        for name, value in choice["delta"].items():
            if name == "tool_calls":
                self._call(value[0])
            elif name != "role":
                self._texts.setdefault(name, []).append(value)
        if choice["logprobs"] is not None:
            self._logprobs += choice["logprobs"]["content"]
        self._ids += choice.get("token_ids", ())
        if choice["finish_reason"] is not None:
            self._end = {name: choice[name] for name in self._end}

    def _call(self, delta: dict[str, Any]) -> None:
        if "id" in delta:
            function = dict(delta["function"])
            self._calls.append({"id": delta["id"], "type": "function", "function": function})
        else:
            self._calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]

    def choice(self, asked: ChatRequest) -> dict[str, Any]:
        texts = {name: "".join(parts) for name, parts in self._texts.items()}
        content: str | None = texts.pop("content", "")
        if self._calls and not content:
            content = None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None} | texts
        if self._calls:
            message["tool_calls"] = self._calls
        logprobs = {"content": self._logprobs, "refusal": None} if asked.logprobs else None
        choice = {"index": self._index, "message": message, "logprobs": logprobs} | self._end
        return choice | ({"token_ids": self._ids} if asked.return_token_ids else {})
