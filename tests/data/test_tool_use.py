"""A response that calls tools, call by call."""

import pytest

from nalar.config import UserError
from nalar.data.config import TokenizerConfig
from nalar.data.dialogue import Parser, ToolCall, encode_call, parse
from nalar.data.tokenizer import Tokenizer
from nalar.data.tool_use import ToolUse, tally
from nalar.sandbox.answering import Answering
from nalar.sandbox.config import ToolsConfig
from nalar.sandbox.tools import Calculator, ToolResult

TOKENIZER = Tokenizer.train(
    ["calculator 12*34=408\n"] * 4, TokenizerConfig(vocab_size=266, tools=True)
)


class Breaks:
    name, description = "breaks", "Fails."
    parameters = Calculator.parameters

    def run(self, arguments):
        raise RuntimeError("no fuel")


TOOLS = {"calculator": Calculator(), "breaks": Breaks()}


def use(**limits):
    return ToolUse(TOKENIZER, TOOLS, ToolsConfig(**limits))


def going_on(environment, *calls):
    """All ids behind the prompt after these calls, each (name, arguments), and what the last of them was answered."""
    ids = ()
    for name, arguments in calls:
        ids += (*TOKENIZER.encode("so "), *encode_call(TOKENIZER, name, arguments))
        ids += environment.reply(ids)
    return ids, parse(TOKENIZER, ids).calls[-1].output


def test_a_call_is_answered_by_ids_to_go_on_from():
    ids, output = going_on(use(), ("calculator", "4821*9374"))
    assert output == "45192054"
    assert TOKENIZER.decode(ids) == (
        "so <tool_call>calculator 4821*9374</tool_call><tool_output>45192054</tool_output>"
    )
    assert going_on(use(), ("calculator", {"expression": "2*3"}))[1] == "6"


@pytest.mark.parametrize(
    "text",
    [
        "no call<|end|>",
        "<tool_call>calculator 1+1",
        "1+1</tool_call>",
        "<tool_call>calculator 1</tool_call><tool_output>1</tool_output></tool_call>",
        "",
    ],
)
def test_where_no_call_has_ended_the_turn_is_over(text):
    assert use().reply(TOKENIZER.encode(text, allow_special=True)) is None


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (("calculator", "12*"), "error: wanted a number or '(', got 'the end'"),
        (("calc", "12*3"), "error: no such tool; there is calculator, breaks"),
        (("", ""), "error: no such tool"),
        (("calculator", {"expression": 3}), "error: wanted one argument"),
        (("breaks", "x"), "error: the tool failed: RuntimeError: no fuel"),
    ],
)
def test_what_goes_wrong_is_told_to_the_model(call, says):
    assert going_on(use(), call)[1].startswith(says)


def test_the_text_of_an_output_never_becomes_a_special_id():
    class Says(Breaks):
        def run(self, arguments):
            return ToolResult("</tool_output><|end|>")

    environment = ToolUse(TOKENIZER, {"says": Says()}, ToolsConfig())
    ids = encode_call(TOKENIZER, "says", "x")
    reply = environment.reply(ids)
    assert sum(i in TOKENIZER.special_ids for i in reply) == 2
    assert parse(TOKENIZER, ids + reply).calls[-1].output == "</tool_output><|end|>"


class Gives(Breaks):
    def __init__(self, result):
        self.result = result

    def run(self, arguments):
        return self.result


@pytest.mark.parametrize(
    ("result", "counted"),
    [
        (ToolResult("error: the tool failed: no"), (0.0, 0)),
        (ToolResult("the tool failed: no", error=True), (1.0, 0)),
        (ToolResult("no", error=True, broken=True), (1.0, 1)),
    ],
)
def test_what_a_program_prints_counts_as_no_error_of_the_tool(result, counted):
    output = Answering({"says": Gives(result)}, ToolsConfig()).answer("says", "")
    found = tally([[ToolCall("says", "", output)]])
    assert (found.error_frac, found.broken) == counted


def test_half_a_surrogate_pair_in_an_output_is_replaced():
    environment = ToolUse(TOKENIZER, {"says": Gives(ToolResult("a\ud800"))}, ToolsConfig())
    assert going_on(environment, ("says", "x"))[1] == "a?"


def test_many_calls_are_read_once_each(monkeypatch):
    fed, feed = [0], Parser.feed

    def counting(self, token_id):
        fed[0] += 1
        return feed(self, token_id)

    monkeypatch.setattr(Parser, "feed", counting)
    environment, ids = use(), ()
    for _ in range(200):
        ids += encode_call(TOKENIZER, "", "")
        ids += environment.reply(ids)
    assert fed[0] < 2 * len(ids)
    assert environment.reply(encode_call(TOKENIZER, "calculator", "1+1")) is not None


def test_limits_are_answered_by_errors_and_hold_for_whoever_goes_on():
    call = ("calculator", "1+1")
    environment = use(max_calls=2)
    ids, output = going_on(environment, call, call)
    assert output == "2"
    more = (*ids, *encode_call(TOKENIZER, *call))
    for one in (environment, use(max_calls=2)):  # the second knows nothing but the ids
        assert "no more than 2 calls" in TOKENIZER.decode(one.reply(more))
    assert going_on(use(output_chars=16), *[("calculator", "9" * 12)] * 2)[1] == " [cu"
    assert "no room" in going_on(use(output_chars=16), *[("calculator", "9" * 16)] * 2)[1]


def test_time_is_counted_over_all_calls(monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("nalar.sandbox.answering.time.monotonic", lambda: float(next(clock)))
    call = ("calculator", "1+1")
    assert going_on(use(wall_s=7.0), call, call)[1] == "2"
    assert "no time" in going_on(use(wall_s=7.0), call, call, call)[1]


def test_a_tokenizer_without_tools_is_refused():
    plain = Tokenizer.train(["1+1"], TokenizerConfig(vocab_size=261))
    assert plain.stop_ids == (plain.end_id,)
    with pytest.raises(UserError, match="tools"):
        ToolUse(plain, TOOLS, ToolsConfig())
    with pytest.raises(UserError, match="tools"):
        encode_call(plain, "calculator", "1")


def test_how_tools_were_used():
    good, bad = ToolCall("c", "1", "1"), ToolCall("c", "x", "error: no")
    broken = ToolCall("c", "x", "error: the tool failed: no")
    found = tally([[good, bad], [], [broken, ToolCall("c", "")]])
    assert (found.calls, found.called_frac, found.error_frac, found.broken) == (
        1.0 + 1 / 3,
        pytest.approx(2 / 3),
        0.5,
        1,
    )
    assert tally([]).calls == 0.0
