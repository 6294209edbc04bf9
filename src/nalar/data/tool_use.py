"""One response that may call tools: a call ends, the tool runs, its output goes on. Token ids in, token ids out."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nalar.data.dialogue import Parser, ToolCall, encode_output, tool_ids
from nalar.data.tokenizer import Tokenizer
from nalar.sandbox.config import ToolsConfig
from nalar.sandbox.tools import Tool, ToolResult, cut, read_arguments

ERROR = "error: "
"""What an output begins with where the call went wrong."""
BROKEN = "the tool failed: "
"""What follows where it was the tool that did."""


class ToolUse:
    """What answers the calls of one response, within its limits. New for each response.

    Whatever the model writes is answered by text: an error where there is no such tool, where arguments do not fit, and
    where a limit is reached. What a tool itself raises is such an error too.
    """

    def __init__(
        self, tokenizer: Tokenizer, tools: Mapping[str, Tool], limits: ToolsConfig
    ) -> None:
        """UserError where the tokenizer knows no tools."""
        self._ids = tool_ids(tokenizer)
        self._tokenizer, self._tools, self._limits = tokenizer, tools, limits
        self._left_s = limits.wall_s
        self._parser, self._parsed_ids = Parser(tokenizer), tuple[int, ...]()

    def reply(self, token_ids: Sequence[int]) -> tuple[int, ...] | None:
        """Called when a sample stops, with all ids behind its prompt: ids to go on from, which the model did not draw.
        None: the turn is over.

        What was used of calls and outputs is read off the ids, so another ToolUse may go on where this one was.
        """
        if not token_ids or token_ids[-1] != self._ids.end_call:
            return None
        calls = self._calls(token_ids)
        if not calls or calls[-1].output is not None:  # </tool_call> where no call had begun
            return None
        return encode_output(self._tokenizer, self.answer(calls[-1], calls[:-1]))

    def _calls(self, token_ids: Sequence[int]) -> tuple[ToolCall, ...]:
        """Each id is read once, and not again with every call behind it: a model may write a call a few ids long."""
        ids, known = tuple(token_ids), len(self._parsed_ids)
        if ids[:known] != self._parsed_ids:
            self._parser, known = Parser(self._tokenizer), 0
        for token_id in ids[known:]:
            self._parser.feed(token_id)
        self._parsed_ids = ids
        return self._parser.result().calls

    def answer(self, call: ToolCall, before: Sequence[ToolCall] = ()) -> str:
        """The output of a call behind others in the same response."""
        limits = self._limits
        left = limits.output_chars - sum(len(earlier.output or "") for earlier in before)
        if len(before) >= limits.max_calls:
            return f"{ERROR}no more than {limits.max_calls} calls"
        if self._left_s <= 0:
            return f"{ERROR}no time is left for calls"
        if left <= 0:
            return f"{ERROR}no room is left for outputs"
        result = self._result(call)
        text = result.text.encode("utf-8", "replace").decode()  # half surrogates are no text
        if not result.broken and text.startswith(BROKEN if result.error else ERROR):
            text = " " + text  # what a program prints is no error of its call, nor of the tool
        text = (ERROR if result.error else "") + (BROKEN if result.broken else "") + text
        return cut(text, left)

    def _result(self, call: ToolCall) -> ToolResult:
        tool = self._tools.get(call.name)
        if tool is None:
            return ToolResult(f"no such tool; there is {', '.join(self._tools)}", error=True)
        arguments = read_arguments(tool.parameters, call.arguments)
        if arguments is None:
            return ToolResult("wanted arguments as a JSON object", error=True)
        start = time.monotonic()
        try:
            return tool.run(arguments)
        except Exception as error:  # of a tool of one's own: the response goes on
            return ToolResult(f"{type(error).__name__}: {error}", error=True, broken=True)
        finally:
            self._left_s -= time.monotonic() - start


@dataclass(frozen=True)
class ToolTally:
    """How tools were used, over many responses."""

    calls: float
    """Calls a response."""
    called_frac: float
    """Responses with a call."""
    error_frac: float
    """Calls that were answered by an error."""
    broken: int
    """Calls at which the tool itself failed."""


def tally(responses: Iterable[Sequence[ToolCall]]) -> ToolTally:
    """Of the calls of each response. Errors are read off the outputs, as the model reads them."""
    found = list(responses)
    outputs = [call.output or "" for calls in found for call in calls]
    return ToolTally(
        calls=len(outputs) / max(1, len(found)),
        called_frac=sum(bool(calls) for calls in found) / max(1, len(found)),
        error_frac=sum(out.startswith(ERROR) for out in outputs) / max(1, len(outputs)),
        broken=sum(out.startswith(ERROR + BROKEN) for out in outputs),
    )
