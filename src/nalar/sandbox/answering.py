"""What a call is answered by, within the limits of one response. Whatever a model writes, the answer is text."""

import time
from collections.abc import Mapping, Sequence

from nalar.sandbox.config import ToolsConfig
from nalar.sandbox.tools import Tool, ToolResult, cut, read_arguments

ERROR = "error: "
"""What an output begins with where the call went wrong."""
BROKEN = "the tool failed: "
"""What follows where it was the tool that did."""


class Answering:
    """Runs the calls of one response. New for each response.

    An error where there is no such tool, where arguments do not fit, and where a limit is reached. What a tool itself
    raises is such an error too.
    """

    def __init__(self, tools: Mapping[str, Tool], limits: ToolsConfig) -> None:
        self.tools, self.limits = tools, limits
        self._left_s = limits.wall_s

    def answer(self, name: str, arguments: str, before: Sequence[str] = ()) -> str:
        """The output of a call. before: the outputs of those ahead of it in the same response."""
        limits = self.limits
        left = limits.output_chars - sum(map(len, before))
        if len(before) >= limits.max_calls:
            return f"{ERROR}no more than {limits.max_calls} calls"
        if self._left_s <= 0:
            return f"{ERROR}no time is left for calls"
        if left <= 0:
            return f"{ERROR}no room is left for outputs"
        result = self._result(name, arguments)
        text = result.text.encode("utf-8", "replace").decode()  # half surrogates are no text
        if not result.broken and text.startswith(BROKEN if result.error else ERROR):
            text = " " + text  # what a program prints is no error of its call, nor of the tool
        text = (ERROR if result.error else "") + (BROKEN if result.broken else "") + text
        return cut(text, left)

    def _result(self, name: str, written: str) -> ToolResult:
        tool = self.tools.get(name)
        if tool is None:
            return ToolResult(f"no such tool; there is {', '.join(self.tools)}", error=True)
        arguments = read_arguments(tool.parameters, written)
        if arguments is None:
            return ToolResult("wanted arguments as a JSON object", error=True)
        start = time.monotonic()
        try:
            return tool.run(arguments)
        except Exception as error:  # of a tool of one's own: the response goes on
            return ToolResult(f"{type(error).__name__}: {error}", error=True, broken=True)
        finally:
            self._left_s -= time.monotonic() - start
