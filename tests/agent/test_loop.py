"""The agent loop, driven by models that say what a script has them say."""

import itertools
import json

import pytest

from nalar.agent.loop import Loop
from nalar.agent.speech import Asked, Call, Piece, Turn, Usage
from nalar.config import UserError
from nalar.sandbox.answering import Answering
from nalar.sandbox.config import ToolsConfig
from nalar.sandbox.tools import Calculator, open_tools


class Scripted:
    """Says the n-th turn of a script, which may look at the messages; keeps what it was asked."""

    def __init__(self, script):
        self.script, self.seen = script, []

    def say(self, messages, asked):
        self.seen.append(([dict(message) for message in messages], asked))
        thought, answer, calls = self.script(len(self.seen), messages)
        if thought:
            yield Piece("thought", thought)
        if answer:
            yield Piece("answer", answer)
        made = tuple(Call(f"c{len(self.seen)}-{i}", *call) for i, call in enumerate(calls))
        for call in made:
            yield Piece("call", call.name)
            yield Piece("arguments", call.arguments)
        usage = Usage(10, 4, 5, 3, 0.5)
        yield Turn(thought, answer, made, "tool_calls" if calls else "stop", usage)


LIMITS = ToolsConfig(max_calls=100, output_chars=100_000, wall_s=300)
USER = {"role": "user", "content": "go"}


def loop_of(script, tools, asked=None, **limits):
    speaker = Scripted(script)
    limits = LIMITS.model_copy(update=limits)
    asked = asked or Asked(thinking=True, tools=tools)
    return speaker, Loop(speaker, [USER], asked, Answering(tools, limits))


def test_fifty_calls_in_the_sandbox_with_a_thought_before_each_lose_nothing():
    """Each turn reads the last output, thinks, and calls again with it: 25 programs and 25 sums."""
    tools = open_tools(ToolsConfig(names=("calculator", "python")))

    def script(turn, messages):
        value = int(messages[-1]["content"]) if turn > 1 else 0
        if turn == 51:
            return "enough", f"the sum is {value}", []
        if turn % 2:
            return f"add {turn} ", "", [("calculator", f"{value}+{turn}")]
        code = json.dumps({"code": f"print({value} + {turn})"})
        return f"run {turn} ", "", [("python", code)]

    speaker, loop = loop_of(script, tools)
    *pieces, said = loop.run()
    assert said.answer == f"the sum is {50 * 51 // 2}"
    assert (said.finish_reason, len(said.calls)) == ("stop", 50)
    assert [output for _, output in said.calls] == [str(n * (n + 1) // 2) for n in range(1, 51)]
    assert [p.text for p in pieces if p.kind == "output"] == [output for _, output in said.calls]
    assert said.usage == Usage(510, 204, 255, 153, 25.5)
    last, _ = speaker.seen[-1]
    assert len(last) == 1 + 100
    assert [one["reasoning_content"] for one in last[1::2]] == [
        f"{'add' if n % 2 else 'run'} {n} " for n in range(1, 51)
    ]
    for turn, output in zip(last[1::2], last[2::2], strict=True):
        assert output["tool_call_id"] == turn["tool_calls"][0]["id"]
    for earlier, later in itertools.pairwise(messages for messages, _ in speaker.seen):
        assert later[: len(earlier)] == earlier  # nothing said is ever changed


def test_calls_side_by_side_are_each_answered_in_their_order():
    script = [("", "", [("calculator", "1+1"), ("calculator", "2*")]), ("", "done", [])]
    speaker, loop = loop_of(lambda turn, _: script[turn - 1], {"calculator": Calculator()})
    *_, said = loop.run()
    assert [output.partition(":")[0] for _, output in said.calls] == ["2", "error"]
    roles = [message["role"] for message in speaker.seen[1][0]]
    assert roles == ["user", "assistant", "tool", "tool"]


def test_a_model_that_only_calls_is_told_the_limit_and_then_stopped():
    _, loop = loop_of(
        lambda *_: ("", "", [("calculator", "1+1")]), {"calculator": Calculator()}, max_calls=2
    )
    *_, said = loop.run()
    assert said.finish_reason == "max_calls"
    assert [output for _, output in said.calls] == ["2", "2", *["error: no more than 2 calls"] * 3]


def test_a_context_that_is_full_behind_calls_says_how_many():
    def script(turn, _):
        if turn == 4:
            raise UserError(at="the model's context", got="9 tokens", want="fewer")
        return "", "", [("calculator", "1+1")]

    _, loop = loop_of(script, {"calculator": Calculator()})
    with pytest.raises(UserError, match="the model's context, behind 3 calls: got 9 tokens"):
        list(loop.run())


@pytest.mark.parametrize(("thinking", "has_key"), [(True, True), (None, True), (False, False)])
def test_an_empty_thought_stands_beside_a_call_unless_thinking_is_off(thinking, has_key):
    """DeepSeek refuses a call whose thought is missing, and our own template would close the thought."""
    script = [("", "", [("calculator", "1+1")]), ("", "2", [])]
    tools = {"calculator": Calculator()}
    speaker, loop = loop_of(lambda turn, _: script[turn - 1], tools, Asked(thinking=thinking))
    list(loop.run())
    assert ("reasoning_content" in speaker.seen[1][0][1]) == has_key


def test_a_thought_behind_a_call_has_what_is_left_of_the_budget():
    asked = Asked(thinking=True, thinking_budget=4)
    script = [("a", "", [("calculator", "1+1")])] * 2 + [("", "2", [])]
    speaker, loop = loop_of(lambda turn, _: script[turn - 1], {"calculator": Calculator()}, asked)
    list(loop.run())
    assert [asked.thinking_budget for _, asked in speaker.seen] == [4, 1, 0]


def test_what_was_said_when_a_reply_is_stopped_can_be_gone_on_from():
    class Stopped(Calculator):
        def run(self, arguments):
            raise KeyboardInterrupt

    _, loop = loop_of(
        lambda *_: ("so", "", [("calculator", "1+1"), ("calculator", "2+2")]),
        {"calculator": Stopped()},
    )
    with pytest.raises(KeyboardInterrupt):
        list(loop.run())
    said = loop.break_off()
    assert [message["role"] for message in said] == ["assistant", "tool", "tool"]
    assert all(message["content"] == "error: stopped by the user" for message in said[1:])
    _, loop = loop_of(lambda *_: ("so", "half an ans", []), {})
    running = loop.run()
    assert [next(running).text, next(running).text] == ["so", "half an ans"]
    assert loop.break_off() == [{"role": "assistant", "content": "half an ans"}]
