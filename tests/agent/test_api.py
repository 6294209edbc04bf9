"""A model behind an address, as a stream of chunks on loopback."""

import json

import httpx
import pytest

from nalar.agent.api import ChatApi
from nalar.agent.events import events
from nalar.agent.loop import Loop
from nalar.agent.speech import Asked, Call, Piece, Turn, Usage
from nalar.config import UserError
from nalar.endpoint import EndpointConfig
from nalar.sandbox.answering import Answering
from nalar.sandbox.config import ToolsConfig
from nalar.sandbox.tools import Calculator, open_tools

USER = {"role": "user", "content": "go"}
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
    "cost": 0.25,
}


def chunk(reason=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], "usage": None}


def called(name=None, arguments=None, index=0, call_id=None):
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    return {"index": index, "function": function} | ({"id": call_id} if call_id else {})


def stream(*chunks, usage=USAGE):
    lines = [*chunks, {"choices": [], "usage": usage}]
    text = "".join(f"data: {json.dumps(one, ensure_ascii=False)}\n\n" for one in lines)
    return 200, {}, f": keep-alive\n\n{text}data: [DONE]\n\n".encode()


def api(server, **settings):
    return ChatApi(EndpointConfig(base_url=server.url, model="m", **settings), "nk-secret")


def said(server, asked=None, **settings):
    return list(api(server, **settings).say([USER], asked or Asked()))


def test_thought_answer_and_usage_come_apart(chat_server):
    server = chat_server(
        lambda *_: stream(
            chunk(role="assistant", content=""),
            # What Python takes for a line's end, and JSON does not.
            chunk(reasoning_content="hm\u2028 "),
            chunk(content="Gr"),
            chunk(content="üße"),
            chunk("stop"),
        )
    )
    *pieces, turn = said(server)
    assert pieces == [Piece("thought", "hm\u2028 "), Piece("answer", "Gr"), Piece("answer", "üße")]
    assert turn == Turn("hm\u2028 ", "Grüße", (), "stop", Usage(9, 4, 7, 2, 0.25))
    _, headers, body = server.seen[0]
    assert headers["Authorization"] == "Bearer nk-secret"
    assert body.keys() == {"model", "messages", "stream", "stream_options"}  # nothing unasked


def test_what_was_asked_for_is_sent(chat_server):
    server = chat_server(lambda *_: stream(chunk("stop")))
    asked = Asked(
        thinking=False,
        thinking_budget=3,
        temperature=0.0,
        seed=0,
        max_tokens=8,
        tools={"calculator": Calculator()},
    )
    said(server, asked)
    body = server.seen[0][2]
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
    assert (body["thinking_token_budget"], body["temperature"], body["seed"]) == (3, 0.0, 0)
    assert body["tools"][0]["function"]["parameters"]["required"] == ["expression"]


def test_arguments_in_fragments_of_two_calls_are_put_together(chat_server):
    server = chat_server(
        lambda *_: stream(
            chunk(tool_calls=[called("calculator", "", 0, "a")]),
            chunk(tool_calls=[called(arguments='{"expr', index=0)]),
            chunk(tool_calls=[called(arguments='ession": "1+1"}'), called("python", "1", 1, "b")]),
            chunk("tool_calls"),
        )
    )
    *_, turn = said(server)
    calls = (Call("a", "calculator", '{"expression": "1+1"}'), Call("b", "python", "1"))
    assert (turn.calls, turn.finish_reason) == (calls, "tool_calls")


def test_a_call_that_was_cut_is_not_run(chat_server):
    cut = called("calculator", '{"expression": "1+', 0, "a")
    server = chat_server(lambda *_: stream(chunk(tool_calls=[cut]), chunk("length")))
    *_, turn = said(server)
    assert (turn.calls, turn.finish_reason) == ((), "length")


def test_fifty_calls_over_http_in_the_real_sandbox(chat_server):
    """The server knows nothing but what it is sent: it reads the running sum off the last output."""
    tools = open_tools(ToolsConfig(names=("calculator", "python")))

    def plan(body, nth):
        value = int(body["messages"][-1]["content"]) if nth > 1 else 0
        if nth == 51:
            return stream(chunk(reasoning_content="done"), chunk(content=str(value)), chunk("stop"))
        name, key, text = (
            ("calculator", "expression", f"{value}+{nth}")
            if nth % 10
            else ("python", "code", f"print({value}+{nth})")
        )
        arguments = json.dumps({key: text})
        return stream(
            chunk(reasoning_content=f"step {nth}"),
            chunk(tool_calls=[called(name, arguments[:5], 0, f"call-{nth}")]),
            chunk(tool_calls=[called(arguments=arguments[5:])]),
            chunk("tool_calls"),
        )

    server = chat_server(plan)
    limits = ToolsConfig(max_calls=60, output_chars=10_000, wall_s=300)
    loop = Loop(api(server), [USER], Asked(tools=tools), Answering(tools, limits))
    *_, whole = loop.run()
    assert (whole.answer, len(whole.calls)) == ("1275", 50)
    assert (whole.usage.completion_tokens, whole.usage.cost_usd) == (51 * 7, 51 * 0.25)
    messages = server.seen[-1][2]["messages"]
    assert [one["reasoning_content"] for one in messages if one["role"] == "assistant"] == [
        f"step {n}" for n in range(1, 51)
    ]
    assert [one["tool_call_id"] for one in messages if one["role"] == "tool"] == [
        f"call-{n}" for n in range(1, 51)
    ]


def refusal(status, message, code=None, **headers):
    return status, headers, json.dumps({"error": {"message": message, "code": code}}).encode()


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (refusal(400, "too long", "context_length_exceeded"), "the model's context: got too long"),
        (refusal(401, "no such key nk-secret"), r"no such key \[the key\]"),
        ((500, {}, b"<html>\xff"), "status 500: got <html>"),
        ((200, {}, b"data: {nope\n\n"), "the server's stream"),
        ((200, {}, b'data: {"choices": [7]}\n\n'), "the server's stream"),
        ((200, {}, b'data: {"choices": [{"delta": {"content": {}, "x": 1}}]}\n\n'), "no chat"),
        ((200, {}, b'data: {"error": {"message": "gone"}}\n\n'), "got gone"),
        ((200, {}, b"data: [DONE]\n\n"), "got no chat completion"),
    ],
)
def test_what_a_server_does_wrong_is_said(chat_server, reply, says):
    server = chat_server(lambda *_: reply)
    with pytest.raises(UserError, match=says) as raised:
        said(server)
    assert "nk-secret" not in str(raised.value)


def test_a_reply_that_breaks_off_is_no_reply(chat_server):
    text = f"data: {json.dumps(chunk(content='half'))}\n\n".encode()
    with pytest.raises(UserError, match="a reply that breaks off"):
        said(chat_server(lambda *_: (200, {}, text)))


def test_a_busy_server_is_asked_again_and_not_for_ever(chat_server, monkeypatch):
    monkeypatch.setattr("nalar.agent.api.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("nalar.agent.api.LONGEST_PAUSE_S", 0.02)
    busy = refusal(429, "busy", **{"Retry-After": "9"})
    server = chat_server(
        lambda _, nth: busy if nth < 3 else stream(chunk(content="x"), chunk("stop"))
    )
    assert said(server)[-1].answer == "x"
    with pytest.raises(UserError, match="busy after 2 tries"):
        said(chat_server(lambda *_: busy), max_retries=1)


def test_a_line_without_an_end_is_given_up(monkeypatch):
    monkeypatch.setattr("nalar.agent.events.MAX_EVENT_BYTES", 100)
    with pytest.raises(UserError, match="without an end"):
        list(events([b"data: " + b"x" * 60] * 3))


def test_nobody_there_is_an_error_of_the_users():
    nowhere = ChatApi(EndpointConfig(base_url="http://127.0.0.1:9/v1", model="m"))
    with pytest.raises(UserError, match="nalar serve"):
        list(nowhere.say([USER], Asked()))
    with pytest.raises(UserError, match="nalar serve"):
        nowhere.models()


def test_what_a_server_has_is_listed_and_read_no_further_than_a_list_is_long(monkeypatch):
    def listed(status, data):
        asked = ChatApi(EndpointConfig(base_url="http://127.0.0.1:9/v1", model="?"), "nk-secret")
        sent = iter(lambda: data, None)
        transport = httpx.MockTransport(lambda _: httpx.Response(status, content=sent))
        monkeypatch.setattr(asked, "_client", lambda: httpx.Client(transport=transport))
        monkeypatch.setattr("nalar.agent.api.MAX_BODY_BYTES", len(data))
        return asked.models()

    assert listed(200, b'{"data": [{"id": "a"}, {"id": 3}]}') == ["a"]
    with pytest.raises(UserError, match="no list of models"):
        listed(200, b"[" * 100_000)
    with pytest.raises(UserError, match=r"status 401: got no such key \[the key\]"):
        listed(401, refusal(401, "no such key nk-secret")[2])
