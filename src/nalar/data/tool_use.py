"""One response that may call tools: a call ends, the tool runs, its output goes on. Token ids in, token ids out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nalar.data.dialogue import Parser, ToolCall, encode_output, tool_ids
from nalar.data.tokenizer import Tokenizer
from nalar.sandbox.answering import BROKEN, ERROR, Answering
from nalar.sandbox.config import ToolsConfig
from nalar.sandbox.tools import Tool


class ToolUse:
    """What answers the calls of one response, within its limits. New for each response."""

    def __init__(
        self, tokenizer: Tokenizer, tools: Mapping[str, Tool], limits: ToolsConfig
    ) -> None:
        """UserError where the tokenizer knows no tools."""
        self._ids = tool_ids(tokenizer)
        self._tokenizer, self._answering = tokenizer, Answering(tools, limits)
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
        call, before = calls[-1], [earlier.output or "" for earlier in calls[:-1]]
        output = self._answering.answer(call.name, call.arguments, before)
        return encode_output(self._tokenizer, output)

    def _calls(self, token_ids: Sequence[int]) -> tuple[ToolCall, ...]:
        """Each id is read once, and not again with every call behind it: a model may write a call a few ids long."""
        ids, known = tuple(token_ids), len(self._parsed_ids)
        if ids[:known] != self._parsed_ids:
            self._parser, known = Parser(self._tokenizer), 0
        for token_id in ids[known:]:
            self._parser.feed(token_id)
        self._parsed_ids = ids
        return self._parser.result().calls


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
