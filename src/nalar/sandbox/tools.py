"""What a model may call: a calculator, and Python in a box. Whatever goes wrong is text for the model.

Nothing a model wrote is executed in this process: expressions are read by a bounded parser, programs run in a box.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nalar.sandbox.box import Box
from nalar.sandbox.config import SandboxConfig, ToolsConfig
from nalar.sandbox.expression import ExpressionError, parse

Arguments = Mapping[str, Any]
MAX_NUMBER = 10**60
"""Largest literal of the calculator."""
MAX_PROGRAM = 20_000
"""Characters."""


@dataclass(frozen=True)
class ToolResult:
    """What a call gave."""

    text: str
    error: bool = False
    """The text says what went wrong with the call."""
    broken: bool = False
    """It went wrong in the tool itself: no fault of the call's."""


class Tool(Protocol):
    """Something that can be called by name. One call at a time."""

    @property
    def name(self) -> str:
        """Letters, digits, - and _."""
        ...

    @property
    def description(self) -> str:
        """One sentence for whoever may call it."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON schema of the arguments: an object."""
        ...

    def run(self, arguments: Arguments) -> ToolResult:
        """Any arguments are legal: those that do not fit give an error."""
        ...


def read_arguments(parameters: Mapping[str, Any], written: str) -> dict[str, Any] | None:
    """Arguments as a model writes them behind a tool's name: a JSON object of them, or the one argument's bare text.

    Bare is what does not read as an object of the tool's own arguments. None where it has not exactly one argument,
    which is a string, that the text could be.
    """
    properties = parameters.get("properties", {})
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and found.keys() <= properties.keys():
        return found
    if len(properties) != 1:
        return None
    ((name, schema),) = properties.items()
    return {name: written} if schema.get("type") == "string" else None


def write_arguments(parameters: Mapping[str, Any], arguments: Arguments) -> str:
    """The shortest text that `read_arguments` reads as these."""
    values = list(arguments.values())
    if len(values) == 1 and isinstance(values[0], str):
        bare: str = values[0]
        if read_arguments(parameters, bare) == dict(arguments):
            return bare
    return json.dumps(arguments, ensure_ascii=False)


def _one_string(name: str, description: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"type": "string", "description": description}},
        "required": [name],
        "additionalProperties": False,
    }


def _the_string(name: str, arguments: Arguments) -> str | ToolResult:
    """The one argument of a tool that has one, or what is wrong."""
    value = arguments.get(name)
    if arguments.keys() == {name} and isinstance(value, str):
        return value
    return ToolResult(f"wanted one argument, {name}, a string", error=True)


class Calculator:
    """Exact arithmetic: + - * / over integers of up to 60 digits and parentheses; a fraction in lowest terms."""

    name = "calculator"
    description = "Works out + - * / and parentheses over integers, exactly."
    parameters = _one_string("expression", "such as (12+7)*3")

    def run(self, arguments: Arguments) -> ToolResult:
        expression = _the_string("expression", arguments)
        if isinstance(expression, ToolResult):
            return expression
        try:
            return ToolResult(str(parse(expression, max_number=MAX_NUMBER, signed=True).value))
        except ExpressionError as error:
            return ToolResult(str(error), error=True)


_RUN_PROGRAM = """
import ast
import contextlib
import io


def run(source, most):
    out, why = io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            tree = ast.parse(source, "program")
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            names = {"__name__": "__main__"}
            exec(compile(tree, "program", "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), "program", "eval"), names)
                if value is not None:
                    print(repr(value))
        except BaseException as error:
            why, line, at = f"{type(error).__name__}: {error}", None, error.__traceback__
            while at is not None:
                line = at.tb_lineno if at.tb_frame.f_code.co_filename == "program" else line
                at = at.tb_next
            why += f" (line {line})" if line else ""
    return [out.getvalue()[: most + 1], why and why[:500]]
"""
"""Runs inside the box, and nowhere else."""


class PythonTool:
    """A program in a box, new for each call. What it prints comes back, and the value of its last line."""

    name = "python"
    description = (
        "Runs a Python program and gives back what it prints. Nothing is kept from call to call."
    )
    parameters = _one_string("code", "a whole program; standard library only, no files, no network")

    def __init__(self, config: SandboxConfig | None = None, *, output_chars: int = 2000) -> None:
        """UserError where this machine has no isolation of `min_tier`."""
        self._box = Box(config)
        self._output_chars = output_chars
        self.tier = self._box.tier

    def run(self, arguments: Arguments) -> ToolResult:
        code = _the_string("code", arguments)
        if isinstance(code, ToolResult):
            return code
        if len(code) > MAX_PROGRAM:
            return ToolResult(f"{len(code)} characters, limit {MAX_PROGRAM}", error=True)
        outcome = self._box.call(_RUN_PROGRAM, "run", [[code, self._output_chars]])
        if outcome.kind == "broken":
            return ToolResult(f"the sandbox failed: {outcome.why}", error=True, broken=True)
        if outcome.kind == "timeout":
            return ToolResult("the program ran over its time", error=True)
        if outcome.kind == "crashed":
            return ToolResult(f"the program was ended: {outcome.why}", error=True)
        return self._read(outcome.values[0] if outcome.values else (False, outcome.why))

    def _read(self, came: tuple[bool, Any]) -> ToolResult:
        """What came back. A program may write there too, so its form is not taken on trust."""
        match came:
            case (True, [str(text), None]):
                return ToolResult(cut(_clean(text), self._output_chars))
            case (True, [str(text), str(why)]):
                shown = "\n".join(filter(None, (_clean(why), _clean(text))))
                return ToolResult(cut(shown, self._output_chars), error=True)
        return ToolResult("the program left no output that can be read", error=True)

    def close(self) -> None:
        self._box.close()


def _clean(text: str) -> str:
    """Half surrogates cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode().rstrip("\n")


_CUT = " [cut]"


def cut(text: str, most: int) -> str:
    """The text in at most `most` characters; one that was cut says so."""
    return text if len(text) <= most else text[: max(0, most - len(_CUT))] + _CUT[:most]


TOOLS: Mapping[str, Callable[[ToolsConfig], Tool]] = {
    "calculator": lambda config: Calculator(),
    "python": lambda config: PythonTool(config.python, output_chars=config.output_chars),
}


def open_tools(config: ToolsConfig) -> dict[str, Tool]:
    """The tools that a config names. UserError where this machine cannot run one."""
    return {name: TOOLS[name](config) for name in config.names}
