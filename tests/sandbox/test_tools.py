"""Tools: exact arithmetic, programs in a box, and errors that are text."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalar.config import ConfigError
from nalar.sandbox.box import Outcome
from nalar.sandbox.config import SandboxConfig, ToolsConfig
from nalar.sandbox.tools import (
    Calculator,
    PythonTool,
    ToolResult,
    cut,
    open_tools,
    read_arguments,
    write_arguments,
)

LIMITS = {"wall_s": 1.5, "cpu_s": 1, "memory_bytes": 256 * 2**20, "output_bytes": 100_000}
ONE = Calculator.parameters
TWO = {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("4821*9374", "45192054"),
        ("123456789012*987654321098", "121932631136585886175176"),
        ("-(2-5)*-4", "-12"),
        ("1/3+1/6", "1/2"),
    ],
)
def test_the_calculator_is_exact(expression, value):
    assert Calculator().run({"expression": expression}) == ToolResult(value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"expression": "2**9999999"},
        {"expression": "1/0"},
        {"expression": "__import__('os')"},
        {"expression": "1+" * 5000},
        {"expression": "-" * 199 + "("},
        {"expression": "9" * 80},
        {"expression": 5},
        {"expression": "1", "more": "2"},
        {},
    ],
)
def test_what_is_no_expression_is_an_error_in_words(arguments):
    result = Calculator().run(arguments)
    assert result.error and not result.broken and 0 < len(result.text) < 300


@given(st.text(max_size=60) | st.text("0123456789+-*/() ", max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_answered(text):
    assert Calculator().run({"expression": text}).text


@pytest.fixture(scope="module", params=["namespaces", "bubblewrap"])
def python(request, objections):
    if why := objections[request.param]:
        give_up = pytest.fail if os.environ.get("NALAR_ALL_TIERS") else pytest.skip
        give_up(f"{request.param} does not work here: {why}")
    made = PythonTool(SandboxConfig(tier=request.param, **LIMITS), output_chars=200)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print(4821*9374)", "45192054"),
        ("x = 6\nx * 7", "42"),
        ("import math\nfor i in range(2): print(math.comb(5, i))", "1\n5"),
        ("def f(n): return n and n + f(n - 1)\nprint(f(9))", "45"),
        ("", ""),
        ("print('\\ud800')", "?"),
        ("import sys\nsys.stderr.write('e')\nNone", "e"),
    ],
)
def test_a_program_gives_what_it_prints_and_its_last_value(python, code, text):
    assert python.run({"code": code}) == ToolResult(text)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("print(1)\n1/0", "ZeroDivisionError: division by zero (line 2)\n1"),
        ("def f(x: return", "SyntaxError"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("open('/etc/passwd').read()", "Error"),
        ("while True: pass", "ran over its time"),
        ("import os; os._exit(0)", "no output"),
        ("import ctypes; ctypes.string_at(0)", "ended: signal 11"),
        ("print('a' * 10**10)", "MemoryError"),
    ],
)
def test_what_goes_wrong_comes_back_as_text(python, code, says):
    result = python.run({"code": code})
    assert result.error and not result.broken
    assert says in result.text and len(result.text) <= 200


def test_long_output_is_cut_and_says_so(python):
    result = python.run({"code": "print('a' * 50_000)"})
    assert result == ToolResult("a" * 194 + " [cut]")
    assert python.run({"code": "1" * 30_000}).error


def test_a_box_that_fails_is_no_fault_of_the_program(python, monkeypatch):
    monkeypatch.setattr(python._box, "call", lambda *_: Outcome("broken", why="no fork"))
    assert python.run({"code": "1"}) == ToolResult("the sandbox failed: no fork", True, True)


def test_a_program_cannot_forge_the_form_of_what_comes_back(python, monkeypatch):
    for values in (((True, 5),), ((True, ["a", 5]),), ((False, "RecursionError"),), ()):
        monkeypatch.setattr(python._box, "call", lambda *_, v=values: Outcome("done", v))
        assert python.run({"code": "1"}).error


@pytest.mark.parametrize(
    ("parameters", "written", "read"),
    [
        (ONE, "12*34", {"expression": "12*34"}),
        (ONE, '{"expression": "12*34"}', {"expression": "12*34"}),
        (ONE, '{"x": 1}', {"expression": '{"x": 1}'}),
        (ONE, "", {"expression": ""}),
        (TWO, '{"city": "Bandung", "days": 2}', {"city": "Bandung", "days": 2}),
        (TWO, "Bandung", None),
        (TWO, '{"country": "ID"}', None),
        ({"properties": {"n": {"type": "integer"}}}, "5", None),
        (ONE, "[" * 100_000, {"expression": "[" * 100_000}),
    ],
)
def test_arguments_are_a_json_object_or_the_one_text(parameters, written, read):
    assert read_arguments(parameters, written) == read


@given(st.text(max_size=20) | st.just('{"expression": "1"}'))
def test_what_is_written_is_read_again(text):
    for parameters, arguments in ((ONE, {"expression": text}), (TWO, {"city": text})):
        written = write_arguments(parameters, arguments)
        assert read_arguments(parameters, written) == arguments
    assert json.loads(write_arguments(TWO, {"days": 2})) == {"days": 2}


def test_a_cut_never_grows_a_text():
    assert [cut("abcdefghij", n) for n in (10, 9, 6, 3, 0)] == [
        "abcdefghij",
        "abc [cut]",
        " [cut]",
        " [c",
        "",
    ]


def test_tools_are_named_in_a_config():
    assert open_tools(ToolsConfig()) == {}
    assert list(open_tools(ToolsConfig(names=("calculator",)))) == ["calculator"]
    with pytest.raises(ConfigError, match=r"tools\.names"):
        ToolsConfig(names=("calculator", "calculator"))
