"""`/v1/messages`, in Anthropic's form: a body to an ask, and errors. What is said: `messages_out.py`.

Imports no torch.
"""

from typing import Any, Literal

from pydantic import AliasChoices, Field

from nalar.server.ask import Ask, ResponseFormat, ToolChoice, ToolSpec
from nalar.server.config import ServerConfig
from nalar.server.wire.body import Wire
from nalar.server.wire.chat import choice_of, tools_of
from nalar.server.wire.errors import ApiError, bad_request
from nalar.server.wire.sampling import MOST_TOKENS, SamplingFields
from nalar.server.wire.thinking import ThinkingFields
from nalar.server.wire.turns import Turns

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
Blocks = str | list[dict[str, Any]]


class WireTurn(Wire):
    role: Literal["user", "assistant", "system"]
    content: Blocks


class WireClientTool(Wire):
    type: Literal["custom"] = "custom"
    name: str = Field(min_length=1, max_length=256)
    description: str = ""
    input_schema: dict[str, Any]
    strict: bool = False


class WireOutput(Wire):
    effort: Any = None
    format: dict[str, Any] | None = None


class MessagesRequest(ThinkingFields, SamplingFields):
    """Sampling settings that Anthropic's own models do not take are taken here as chats take them."""

    messages: list[WireTurn]
    system: Blocks = ""
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    stop: str | list[str] = Field(
        default_factory=list, validation_alias=AliasChoices("stop_sequences", "stop")
    )
    tools: list[WireClientTool] = Field(default_factory=list, max_length=512)
    tool_choice: dict[str, Any] | None = None
    output_config: WireOutput = WireOutput()

    def ask(self, config: ServerConfig, seed: int) -> Ask:
        if self.n != 1:
            raise bad_request("n: a message has one choice", "n")
        tools = tools_of(
            ToolSpec(tool.name, tool.description, tool.input_schema, tool.strict)
            for tool in self.tools
        )
        turns = self._turns()
        last = turns.messages[-1]
        goes_on = last["role"] == "assistant" and not last.get("tool_calls")
        return Ask(
            messages=turns.messages,
            tools=tools,
            tool_choice=self._choice(tools),
            parallel_tool_calls=not (self.tool_choice or {}).get("disable_parallel_tool_use"),
            thinking=self.thinking_asked(config, reasoning_effort=self.output_config.effort),
            response_format=self._format(),
            params=self.params(config, seed),
            max_tokens=self.max_tokens or config.default_max_tokens,
            stop=self.stops,
            ignore_eos=self.ignore_eos,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            template_kwargs=self.template_kwargs,
            cache_salt=self.cache_salt,
            priority=self.priority,
        )

    def _choice(self, tools: tuple[ToolSpec, ...]) -> ToolChoice:
        given = self.tool_choice
        if given is None:
            return ToolChoice("auto")
        kind = given.get("type")
        if kind == "tool":
            return choice_of({"name": given.get("name")}, tools)
        if not isinstance(kind, str) or kind not in _CHOICES:
            raise bad_request("tool_choice.type: wanted auto, any, tool or none", "tool_choice")
        return choice_of(_CHOICES[kind], tools)

    def _format(self) -> ResponseFormat:
        given = self.output_config.format
        if given is None:
            return ResponseFormat("text")
        if given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
            want = "type json_schema with a schema"
            raise bad_request(f"output_config.format: wanted {want}", "output_config.format")
        return ResponseFormat("json_schema", given["schema"])

    def _turns(self) -> Turns:
        turns = Turns()
        system = _joined(self.system, "system")
        if system:
            turns.say("system", system)
        if not self.messages:
            raise bad_request("messages: wanted at least one", "messages")
        for i, turn in enumerate(self.messages):
            at = f"messages[{i}].content"
            if turn.role == "assistant":
                _take_assistant(turns, turn.content, at)
            elif turn.role == "system":
                turns.say("system", _joined(turn.content, at))
            else:
                _take_user(turns, turn.content, at)
        if not turns.messages:
            raise bad_request("messages: wanted at least one that says something", "messages")
        return turns


def _take_assistant(turns: Turns, content: Blocks, at: str) -> None:
    for i, block in enumerate(_blocks(content)):
        here, kind = f"{at}[{i}]", block.get("type")
        if kind == "text":
            turns.answer(_text(block, "text", here))
        elif kind == "thinking":
            turns.thought(_text(block, "thinking", here))
        elif kind == "tool_use":
            arguments = block.get("input", {})
            if not isinstance(arguments, dict):
                raise bad_request(f"{here}.input: wanted an object", here)
            turns.call(_text(block, "id", here), _text(block, "name", here), arguments)
        elif kind != "redacted_thinking":  # which nobody but its maker can read
            raise _unknown(here, "text, thinking, redacted_thinking or tool_use")


def _take_user(turns: Turns, content: Blocks, at: str) -> None:
    """Results of tools are messages of their own, where they stand; texts in a row are one."""
    texts: list[str] = []
    for i, block in enumerate(_blocks(content)):
        here, kind = f"{at}[{i}]", block.get("type")
        if kind == "text":
            texts.append(_text(block, "text", here))
        elif kind == "tool_result":
            if texts:
                turns.say("user", "".join(texts))
            texts = []
            result = _joined(block.get("content") or "", f"{here}.content")
            turns.result(_text(block, "tool_use_id", here), result)
        else:
            raise _unknown(here, "text or tool_result; this model reads nothing else")
    if texts:
        turns.say("user", "".join(texts))


def _blocks(content: Blocks) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _joined(content: Any, at: str) -> str:
    """Blocks of text as one."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{at}: wanted a text or a list of blocks", at)
    for i, block in enumerate(content):
        if not isinstance(block, dict) or block.get("type") != "text":
            raise _unknown(f"{at}[{i}]", "text")
    return "".join(_text(block, "text", at) for block in content)


def _unknown(at: str, known: str) -> ApiError:
    return bad_request(f"{at}.type: wanted {known}", at)


def _text(block: dict[str, Any], name: str, at: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise bad_request(f"{at}.{name}: wanted a text", at)
    return value


def error_json(error: ApiError) -> dict[str, Any]:
    """An error as Anthropic writes it."""
    kind = _ERROR_TYPES.get(error.status)
    kind = kind or ("invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}
