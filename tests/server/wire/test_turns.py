"""Histories out of items."""

import time

import pytest

from nalar.server.wire.turns import Turns


def test_what_an_assistant_says_in_a_row_is_one_message_in_the_order_of_messages():
    turns = Turns()
    turns.say("user", "hi")
    turns.thought("a")
    turns.thought("b")
    turns.answer("c")
    turns.answer("")
    turns.answer("d")
    turns.call("1", "f", {"x": 1})
    turns.result("1", "2")
    turns.result("other", "3")
    turns.answer("e")
    turns.thought("f")
    user, said, result, other, answer, thought = turns.messages
    assert user == {"role": "user", "content": "hi"}
    function = {"name": "f", "arguments": '{"x": 1}'}
    calls = [{"id": "1", "type": "function", "function": function}]
    assert said == {
        "role": "assistant",
        "content": "cd",
        "reasoning_content": "ab",
        "tool_calls": calls,
    }
    assert result == {"role": "tool", "content": "2", "tool_call_id": "1", "name": "f"}
    assert other == {"role": "tool", "content": "3", "tool_call_id": "other"}
    assert answer == {"role": "assistant", "content": "e"}
    assert thought == {"role": "assistant", "content": "", "reasoning_content": "f"}


@pytest.mark.parametrize("take", ["answer", "thought", "result"])
def test_a_body_full_of_small_items_is_taken_at_once(take):
    turns = Turns()
    long = "a" * 2_000_000
    (turns.thought if take == "thought" else turns.answer)(long)
    begun_s = time.perf_counter()
    for number in range(40_000):
        arguments = (str(number), "b") if take == "result" else ("b",)
        getattr(turns, take)(*arguments)
    assert turns.messages and time.perf_counter() - begun_s < 3
