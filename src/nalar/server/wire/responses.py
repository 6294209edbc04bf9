"""`/v1/responses`: a body to an ask, without any state kept between requests. What is said: `responses_out.py`.

Imports no torch.
"""

from typing import Any, Literal

from pydantic import Field

from nalar.server.ask import Ask, Message, ResponseFormat, ToolSpec
from nalar.server.config import ServerConfig
from nalar.server.wire.body import Wire
from nalar.server.wire.chat import choice_of, format_of, tools_of
from nalar.server.wire.errors import bad_request
from nalar.server.wire.messages_in import ROLES, text_of
from nalar.server.wire.sampling import MAX_TOP_LOGPROBS, MOST_TOKENS, SamplingFields
from nalar.server.wire.thinking import ThinkingFields
from nalar.server.wire.turns import Turns

LOGPROBS = "message.output_text.logprobs"
_STATEFUL = ("previous_response_id", "conversation", "background", "prompt")


class WireFunctionTool(Wire):
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=256)
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool = False


class WireText(Wire):
    format: dict[str, Any] | None = None


class ResponsesRequest(ThinkingFields, SamplingFields):
    """Sampling settings that OpenAI's own models do not take are taken here as chats take them."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    tools: list[WireFunctionTool] = Field(default_factory=list, max_length=512)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    text: WireText = WireText()
    reasoning: dict[str, Any] | None = None
    include: list[str] = Field(default_factory=list, max_length=64)
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    prompt: Any = None
    truncation: Literal["auto", "disabled"] = "disabled"
    """Neither cuts anything: what is too long is refused."""

    @property
    def with_logprobs(self) -> bool:
        return self.top_logprobs > 0 or LOGPROBS in self.include

    @property
    def wants_summary(self) -> bool:
        """Whether thoughts go where OpenAI's own models have summaries of theirs; in full all the same."""
        reasoning = self.reasoning or {}
        return (reasoning.get("summary") or reasoning.get("generate_summary")) is not None

    def ask(self, config: ServerConfig, seed: int) -> Ask:
        """ApiError (400), also for whatever would need an earlier reply to be kept."""
        for name in _STATEFUL:
            if getattr(self, name):
                message = f"{name}: this server keeps no replies; send the whole history as input"
                raise bad_request(message, name)
        if self.n != 1:
            raise bad_request("n: a response has one choice", "n")
        tools = tools_of(
            ToolSpec(tool.name, tool.description, tool.parameters, tool.strict)
            for tool in self.tools
        )
        return Ask(
            messages=self._messages(),
            tools=tools,
            tool_choice=choice_of(self.tool_choice, tools),
            parallel_tool_calls=self.parallel_tool_calls,
            thinking=self.thinking_asked(config, reasoning=self.reasoning),
            response_format=self._format(),
            params=self.params(
                config, seed, logprobs=self.top_logprobs if self.with_logprobs else None
            ),
            max_tokens=self.max_output_tokens or config.default_max_tokens,
            stop=self.stops,
            ignore_eos=self.ignore_eos,
            template_kwargs=self.template_kwargs,
            cache_salt=self.cache_salt,
            priority=self.priority,
        )

    def _format(self) -> ResponseFormat:
        given = self.text.format
        if given is None or given.get("type") != "json_schema":
            return format_of(given)
        if not isinstance(given.get("schema"), dict):
            raise bad_request("text.format.schema: wanted a schema", "text.format")
        return ResponseFormat("json_schema", given["schema"])

    def _messages(self) -> tuple[Message, ...]:
        turns = Turns()
        if self.instructions:
            turns.say("system", self.instructions)
        if isinstance(self.input, str):
            turns.say("user", self.input)
            return turns.messages
        for i, item in enumerate(self.input):
            _take(turns, item, f"input[{i}]")
        if not self.input or not turns.messages:
            raise bad_request("input: wanted at least one message", "input")
        return turns.messages


def _take(turns: Turns, item: dict[str, Any], at: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in ROLES or role == "tool":
            raise bad_request(f"{at}.role: wanted system, developer, user or assistant", at)
        content = item.get("content")
        if not isinstance(content, str | list):
            raise bad_request(f"{at}.content: wanted a text or a list of parts", at)
        text = text_of(_parts(content, f"{at}.content"), f"{at}.content")
        if role == "assistant":
            turns.answer(text)
        else:
            turns.say(ROLES[role], text)
    elif kind == "reasoning":
        turns.thought(_thought(item, at))
    elif kind == "function_call":
        name = _text(item, "name", at)
        if not name:
            raise bad_request(f"{at}.name: wanted the name of a function", at)
        turns.call(_text(item, "call_id", at), name, _text(item, "arguments", at))
    elif kind == "function_call_output":
        output = item.get("output", "")
        if not isinstance(output, str | list):
            raise bad_request(f"{at}.output: wanted a text or a list of parts", at)
        text = text_of(_parts(output, f"{at}.output"), f"{at}.output")
        turns.result(_text(item, "call_id", at), text)
    else:
        known = "message, reasoning, function_call, function_call_output"
        raise bad_request(f"{at}.type: got {str(kind)[:40]!r}; wanted one of {known}", at)


def _parts(content: Any, at: str) -> str | list[str | dict[str, Any]]:
    if isinstance(content, list) and not all(isinstance(part, str | dict) for part in content):
        raise bad_request(f"{at}: wanted parts that are objects", at)
    parts: str | list[str | dict[str, Any]] = content
    return parts


def _thought(item: dict[str, Any], at: str) -> str:
    """Its text in full where the item has it, else its summary; one that is only encrypted says nothing here."""
    for name in ("content", "summary"):
        parts = item.get(name)
        if not parts:
            continue
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise bad_request(f"{at}.{name}: wanted a list of parts", at)
        return "".join(_text(part, "text", f"{at}.{name}") for part in parts)
    return ""


def _text(item: dict[str, Any], name: str, at: str) -> str:
    value = item.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise bad_request(f"{at}.{name}: wanted a text", at)
    return value
