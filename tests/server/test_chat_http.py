"""Chats over ASGI, the engine played by a script."""

import asyncio
import json
import sqlite3
import threading
from collections import Counter

import pytest

from nalar.config import UserError
from nalar.data.dialogue import encode_call
from nalar.policy import Policy, PolicyConfig
from nalar.server.config import SamplingDefaults
from nalar.server.engine.messages import EngineError, encode_line, read_request, request_json
from nalar.server.http import replies
from nalar.server.http import service as service_module
from nalar.server.keys import KeyRing
from nalar.server.ledger import Ledger, LedgerError
from nalar.server.prices_config import PriceTable

PATH = "/v1/chat/completions"
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "say 12"}]}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def said(tokenizer):
    def make(thought="12 is", answer="34 é!"):
        ids = [*tokenizer.encode(thought), tokenizer.end_think_id]
        return [*ids, *tokenizer.encode(answer), tokenizer.end_id]

    return make


@pytest.fixture
def calling(tokenizer):
    """A call, as our own models write it."""
    t = tokenizer
    call = [t.tools.call, *t.encode('add {"a": 12}'), t.tools.end_call]
    return [*t.encode("is"), t.end_think_id, *t.encode("ab"), *call]


def events_of(text):
    lines = [line for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def put_together(events):
    """What a client makes of the chunks: by choice, its message, its end, its logprobs."""
    choices = {}
    for event in events:
        for choice in event["choices"]:
            whole = choices.setdefault(choice["index"], {"calls": [], "logprobs": []})
            delta = choice["delta"]
            for name in ("content", "reasoning_content"):
                if name in delta:
                    whole[name] = whole.get(name, "") + delta[name]
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(whole["calls"]):
                    whole["calls"].append([call["id"], call["function"]["name"], ""])
                whole["calls"][call["index"]][2] += call["function"]["arguments"]
            whole["logprobs"] += (choice["logprobs"] or {}).get("content", [])
            whole["end"] = choice["finish_reason"] or whole.get("end")
    return choices


@pytest.mark.parametrize("step", [1, 3, 50])
async def test_the_whole_reply_is_the_stream_put_together(
    make_client, scripted, said, calling, step
):
    client = make_client(scripted([[said(), calling]], step=step))
    ask = ASK | {"n": 2, "tools": TOOLS, "logprobs": True, "top_logprobs": 1}
    whole = (await client.post(PATH, json=ask)).json()
    reply = await client.post(PATH, json=ask | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = events_of(reply.text)
    streamed = put_together(events)
    assert [c["finish_reason"] for c in whole["choices"]] == ["stop", "tool_calls"]
    for choice in whole["choices"]:
        own, message = streamed[choice["index"]], choice["message"]
        assert own["content"] == message["content"]
        assert own["reasoning_content"] == message["reasoning_content"]
        assert own["end"] == choice["finish_reason"]
        assert own["logprobs"] == choice["logprobs"]["content"]
        calls = [
            [c["function"]["name"], c["function"]["arguments"]]
            for c in message.get("tool_calls", ())
        ]
        assert [call[1:] for call in own["calls"]] == calls
    assert whole["choices"][1]["message"]["tool_calls"][0]["function"]["name"] == "add"
    assert json.loads(streamed[1]["calls"][0][2]) == {"a": 12}
    written = "".join(
        entry["token"] for entry in streamed[0]["logprobs"] if len(entry["bytes"]) == 1
    )
    assert written.replace("\ufffd", "") == "34 !"
    assert [e["choices"][0]["delta"].get("role") for e in events[:2]] == ["assistant"] * 2
    assert all("usage" not in event for event in events)


@pytest.mark.parametrize("step", [1, 100])
@pytest.mark.parametrize("stream", [False, True])
async def test_one_call_is_all_where_no_more_are_wanted(
    make_client, scripted, calling, tokenizer, step, stream
):
    drawn = [*calling, *calling[-len(encode_call(tokenizer, "add", '{"a": 12}')) :], 9]
    link = scripted([[*drawn, *tokenizer.encode("Oslo"), tokenizer.end_id]], step=step)
    client = make_client(link)
    tool = {"name": "add", "input_schema": {"type": "object"}}
    chat = ASK | {"tools": TOOLS, "stream": stream}
    one = await client.post(PATH, json=chat | {"parallel_tool_calls": False})
    two = await client.post(PATH, json=chat)
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    body = ASK | {"tools": [tool], "tool_choice": choice, "stream": stream}
    message = await client.post("/v1/messages", json=body)
    assert (one.text.count('"add"'), two.text.count('"add"')) == (1, 2)
    assert message.text.count('"add"') == 1 and '"tool_use"' in message.text
    assert "Oslo" not in one.text + message.text
    assert step == 1 or "Oslo" in two.text
    assert '"finish_reason":"tool_calls"' in one.text
    assert link.aborted == ([0, 2] if step == 1 else [])


async def test_usage_comes_last_and_alone_where_it_is_asked_for(make_client, scripted, said):
    prices = PriceTable(input_usd=1, cached_input_usd=0.5, output_usd=2)
    client = make_client(scripted([said()]), prices=prices)
    ask = ASK | {"stream": True, "stream_options": {"include_usage": True}}
    *events, last = events_of((await client.post(PATH, json=ask)).text)
    assert all(event["usage"] is None and event["choices"] for event in events)
    usage = last["usage"]
    assert last["choices"] == [] and usage["total_tokens"] == usage["prompt_tokens"] + len(said())
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_cache_hit_tokens"] == 3
    fresh = usage["prompt_cache_miss_tokens"]
    assert usage["cost"] == pytest.approx((fresh + 3 * 0.5 + len(said()) * 2) / 1e6)


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        (PATH, ASK | {"guided_json": {}}, "guided_json"),
        (PATH, {"messages": [ASK["messages"][0] | {"reasonin": 1}] * 2}, "messages.reasonin"),
        (
            PATH,
            ASK | {"tools": [{"function": {"name": "f", "returns": 1}}]},
            "tools.function.returns",
        ),
        ("/v1/messages", ASK | {"response_format": {}}, "response_format"),
        ("/v1/responses", {"input": "a", "response_format": {}}, "response_format"),
        ("/tokenize", {"prompt": "a", "truncate": 1}, "truncate"),
        ("/detokenize", {"tokens": [9], "skip": 1}, "skip"),
    ],
)
async def test_fields_that_are_not_known_are_named_in_the_log(
    make_client, scripted, said, caplog, path, body, names
):
    client = make_client(scripted([said()]))
    assert (await client.post(path, json=body)).status_code == 200
    assert [record.args[0] for record in caplog.records if "not known" in record.msg] == [names]


async def test_a_reply_that_comes_back_has_nothing_unknown(make_client, scripted, calling, caplog):
    client = make_client(scripted([calling]))
    message = (await client.post(PATH, json=ASK | {"tools": TOOLS})).json()["choices"][0]["message"]
    output = {"role": "tool", "content": "1", "tool_call_id": message["tool_calls"][0]["id"]}
    history = [*ASK["messages"], message, output]
    await client.post(PATH, json=ASK | {"tools": TOOLS, "messages": history})
    assert not caplog.records


async def test_a_refusal_is_what_was_said(make_client, scripted, said):
    link = scripted([said()])
    client = make_client(link)
    for refused in ({"content": "34"}, {"content": None, "refusal": "34"}):
        history = [*ASK["messages"], {"role": "assistant"} | refused, *ASK["messages"]]
        await client.post(PATH, json={"messages": history})
    assert link.requests[0].prompt_ids == link.requests[1].prompt_ids


async def test_messages_are_tokenized_as_the_chat_would_ask(make_client, scripted, said):
    link = scripted([said()])
    client = make_client(link)
    asked = ASK | {"chat_template_kwargs": {"enable_thinking": False}}
    goes_on = {"messages": [*ASK["messages"], {"role": "assistant", "content": "3"}]}
    for body in (asked, goes_on | {"continue_final_message": True}):
        await client.post(PATH, json=body)
        reply = await client.post("/tokenize", json=body)
        assert tuple(reply.json()["tokens"]) == link.requests[-1].prompt_ids


async def test_names_of_thoughts_and_whether_they_are_shown(make_client, scripted, said):
    client = make_client(scripted([said()]), reasoning_key=True)
    message = (await client.post(PATH, json=ASK)).json()["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "12 is"
    reply = (await client.post(PATH, json=ASK | {"include_reasoning": False})).json()
    assert set(reply["choices"][0]["message"]) == {"role", "content", "refusal"}
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 5


async def test_what_is_asked_of_the_engine(make_client, scripted, said, tokenizer):
    link = scripted([said()])
    client = make_client(link)
    ask = {
        "max_tokens": 9,
        "max_completion_tokens": 30,
        "stop": ["zz", ""],
        "seed": -1,
        "top_k": -1,
        "temperature": None,
        "tools": None,
        "reasoning_effort": "low",
        "stop_token_ids": [7],
        "novel_field": {"a": 1},
    }
    assert (await client.post(PATH, json=ASK | ask)).status_code == 200
    request = link.requests[0]
    assert request.stop == ("zz",) and request.params.max_tokens == 30
    assert request.params.seed == 2**63 - 1 and request.params.top_k is None
    assert request.params.thinking.budget_tokens == 1024
    assert set(request.params.stop_token_ids) == {*tokenizer.stop_ids, 7}
    await client.post(PATH, json=ASK | {"max_tokens": 10**6, "ignore_eos": True})
    assert link.requests[1].params.stop_token_ids == ()
    assert link.requests[1].params.max_tokens == 512 - len(link.requests[1].prompt_ids)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, ASK),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/messages", ASK),
        ("/v1/responses", {"input": "a"}),
    ],
)
async def test_what_a_request_leaves_out_is_sampled_by_the_servers_settings(
    make_client, scripted, said, path, body
):
    link = scripted([said()])
    own = SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1)
    client = make_client(link, sampling=own)
    given = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0, "repetition_penalty": 1}
    for more in ({}, given, {"top_k": 7}):
        assert (await client.post(path, json=body | more)).status_code == 200
    asked = [
        (p.temperature, p.top_p, p.top_k, p.min_p, p.repetition_penalty)
        for p in (request.params for request in link.requests)
    ]
    assert asked == [(0.6, 0.9, 20, 0.1, 1.1), (0, 1, None, 0, 1), (0.6, 0.9, 7, 0.1, 1.1)]


async def test_a_stop_string_ends_the_answer_and_is_not_said(make_client, scripted, said):
    link = scripted([said("3 4 thinks", "ab 34 12")])
    client = make_client(link)
    for more in ({}, {"tools": TOOLS}):
        whole = (await client.post(PATH, json=ASK | {"stop": "34"} | more)).json()["choices"][0]
        assert whole["message"]["content"] == "ab " and whole["stop_reason"] == "34"
        streamed = put_together(
            events_of(
                (await client.post(PATH, json=ASK | {"stop": "34", "stream": True} | more)).text
            )
        )
        assert streamed[0]["content"] == "ab " and streamed[0]["end"] == "stop"
    assert link.aborted  # it would have gone on


async def test_what_a_stop_string_costs_does_not_hang_on_how_fast_one_reads(
    make_client, scripted, said
):
    replies_ = []
    for step in (1, 4, 100):  # tokens that were joined to an event
        client = make_client(scripted([said("34 is", "ab 34 12 " + "5" * 60)], step=step))
        for more in ({"tools": TOOLS}, {"tools": TOOLS, "logprobs": True}, {}):
            reply = (await client.post(PATH, json=ASK | {"stop": "34 1"} | more)).json()
            replies_.append((reply["usage"]["completion_tokens"], reply["choices"][0]["message"]))
    up_to = len(said("34 is", "ab 34 1")) - 1
    with_tools = [reply for i, reply in enumerate(replies_) if i % 3 != 2]
    assert {num for num, _ in with_tools} == {up_to}
    assert {message["content"] for _, message in replies_} == {"ab "}


async def test_a_prompt_that_is_too_long_says_so_in_the_words_that_clients_look_for(
    make_client, scripted, said
):
    client = make_client(scripted([said()]))
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "9" * 600}]}
    reply = await client.post(PATH, json=ask)
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "maximum context length" in error["message"]


async def test_failures_before_and_within_a_stream(make_client, scripted, said, tokenizer):
    link = scripted([EngineError("it died")])
    client = make_client(link)
    for stream in (True, False):
        reply = await client.post(PATH, json=ASK | {"stream": stream})
        assert reply.status_code == 500 and reply.json()["error"]["code"] == "engine_error"
        assert reply.headers["x-should-retry"] == "false"

    class Breaking(scripted):
        async def stream(self, request, unread=None):
            async for event in super().stream(request):
                yield event
                raise EngineError("it died")

    text = (await make_client(Breaking([said()])).post(PATH, json=ASK | {"stream": True})).text
    last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "engine_error" and "[DONE]" not in text
    link.state = "loading"
    reply = await client.post(PATH, json=ASK)
    assert reply.status_code == 503 and reply.headers["retry-after"] == "8"
    health = await client.get("/health")
    assert health.status_code == 503 and health.headers["retry-after"] == "8"
    assert health.json() == {"status": "loading", "reason": "the engine is loading"}


async def test_who_is_refused_or_failed_by_the_engine_pays_nothing(
    make_client, scripted, said, tmp_path
):
    client = make_client(
        scripted([EngineError("it died"), UserError(at="a", got="b", want="c"), said()]),
        ledger=tmp_path / "ledger.db",
        prices=PriceTable(input_usd=1, cached_input_usd=1, output_usd=1),
    )
    ledger = client.app.state.service.writer.ledger
    assert [(await client.post(PATH, json=ASK)).status_code for _ in range(2)] == [500, 400]
    async with asyncio.timeout(10):
        while (total := ledger.sums()[0]).num_requests != 2:
            await asyncio.sleep(0.01)
    assert (total.prompt_tokens, total.cost_picodollars) == (0, 0)
    await client.post(PATH, json=ASK)
    assert ledger.sums()[0].prompt_tokens > 0


async def test_a_silent_stream_is_kept_alive(make_client, scripted, said):
    client = make_client(scripted([said()], pause_s=0.06), keep_alive_s=0.02)
    text = (await client.post(PATH, json=ASK | {"stream": True})).text
    assert replies.KEEP_ALIVE.decode() in text
    assert put_together(events_of(text))[0]["content"] == "34 é!"


async def test_request_ids_go_through_and_are_made(make_client, scripted, said):
    client = make_client(scripted([said()]))
    reply = await client.post(PATH, json=ASK, headers={"X-Request-Id": "abc-1"})
    assert reply.headers["x-request-id"] == "abc-1"
    reply = await client.get("/health", headers={"X-Request-Id": "a b\x00"})
    assert reply.headers["x-request-id"].startswith("req-")


def beside_the_loop(method):
    def checked(*args):
        assert threading.current_thread() is not threading.main_thread()
        return method(*args)

    return checked


@pytest.mark.parametrize(
    "messages", [ASK["messages"] * 60, [ASK["messages"][0] | {"content": "5" * 4001}]]
)
async def test_prompts_that_take_long_are_encoded_beside_the_loop(
    make_client, scripted, said, monkeypatch, messages
):
    monkeypatch.setattr(service_module, "prepare", beside_the_loop(service_module.prepare))
    reply = await make_client(scripted([said()])).post(PATH, json={"messages": messages})
    assert reply.status_code in (200, 400)


async def test_keys_open_what_is_theirs(make_client, scripted, said, tmp_path, monkeypatch):
    _, secret = KeyRing.open(tmp_path / "keys.json", must_exist=False).create("ann")
    admin = tmp_path / "admin"
    admin.write_text("an-admin-key-of-some-length\n")
    client = make_client(
        scripted([said()]),
        api_keys=tmp_path / "keys.json",
        admin_key_file=admin,
        ledger=tmp_path / "ledger.db",
    )
    closed = ("/v1/models", "/tokenizer_info", "/usage")
    operators = ("/metrics", "/runs/all", "/runs/one/details")
    for path in closed:
        reply = await client.get(path)
        assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key", path
    assert (await client.post(PATH, json=ASK)).status_code == 401
    for headers in ({"Authorization": f"Bearer {secret}"}, {"x-api-key": secret}):
        assert (await client.post(PATH, json=ASK, headers=headers)).status_code == 200
        for path in closed:
            assert (await client.get(path, headers=headers)).status_code == 200, path
        for path in operators:  # everybody's, or nobody's
            reply = await client.get(path, headers=headers)
            assert reply.status_code == 401, path
            assert reply.json()["error"]["code"] == "admin_key_wanted", path
    as_admin = {"Authorization": "Bearer an-admin-key-of-some-length"}
    assert (await client.post(PATH, json=ASK, headers=as_admin)).status_code == 401
    monkeypatch.setattr(Ledger, "sums", beside_the_loop(Ledger.sums))
    sums = (await client.get("/usage?by=key,day", headers=as_admin)).json()["sums"]
    assert len(sums) == 1 and sums[0]["requests"] == 2
    assert (await client.get("/usage?by=colour", headers=as_admin)).status_code == 400
    today = sums[0]["day"]
    for span in (f"since={today}&until={today}", f"until={today[:7]}"):
        reply = await client.get(f"/usage?{span}", headers=as_admin)
        assert reply.json()["sums"][0]["requests"] == 2, span
    assert (await client.get("/usage?since=yesterday", headers=as_admin)).status_code == 400

    def broken(*_):
        raise LedgerError(at="/srv/ledger.db", got="a damaged file", want="one that can be read")

    monkeypatch.setattr(Ledger, "sums", broken)
    reply = await client.get("/usage", headers=as_admin)
    assert reply.status_code == 503 and "/srv" not in reply.text
    assert (await client.get("/health")).status_code == 200
    for path, status in zip(operators, (200, 200, 404), strict=True):
        assert (await client.get(path, headers=as_admin)).status_code == status, path
    without = make_client(scripted([said()]), api_keys=tmp_path / "keys.json")
    headers = {"Authorization": f"Bearer {secret}"}
    assert (await without.get("/metrics", headers=headers)).json()["error"]["code"] == "no_admin"
    assert (await make_client(scripted([said()])).get("/metrics")).status_code == 200
    assert (await client.head("/health")).status_code == 200


async def test_a_row_is_kept_before_the_last_byte_and_a_budget_closes(
    make_client, scripted, said, tmp_path
):
    keys, ledger = tmp_path / "keys.json", tmp_path / "ledger.db"
    _, secret = KeyRing.open(keys, must_exist=False).create("ann", monthly_budget_usd=1e-6)
    client = make_client(
        scripted([said()]),
        api_keys=keys,
        ledger=ledger,
        prices=PriceTable(output_usd=100),
    )
    headers = {"Authorization": f"Bearer {secret}"}
    async with client.stream("POST", PATH, json=ASK | {"stream": True}, headers=headers) as reply:
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                (total,) = Ledger.open(ledger, read_only=True).sums()
    assert total.num_requests == 1 and total.completion_tokens == len(said())
    assert total.reasoning_tokens == 5 and total.cached_tokens == 3
    reply = await client.post(PATH, json=ASK, headers=headers)
    assert reply.status_code == 402 and reply.json()["error"]["code"] == "insufficient_quota"


async def test_more_than_there_is_room_for_waits_or_is_told_to_come_back(
    make_client, scripted, said, server_config
):
    admission = server_config.admission.model_copy(update={"max_running": 2, "max_queued": 3})
    link = scripted([said()], pause_s=0.005)
    client = make_client(link, admission=admission)
    posts = [client.post(PATH, json=ASK | {"stream": i % 2 == 0}) for i in range(12)]
    replies_ = await asyncio.gather(*posts)
    counts = Counter(reply.status_code for reply in replies_)
    assert counts == {200: 5, 429: 7} and len(link.requests) == 5
    refused = next(reply for reply in replies_ if reply.status_code == 429)
    assert refused.json()["error"]["code"] == "queue_full" and int(refused.headers["retry-after"])
    limits = client.app.state.service.limits
    assert limits.running == limits.queued == limits.queued_tokens == 0


async def test_keys_do_not_share_cached_prompts(make_client, scripted, said, tmp_path):
    ring = KeyRing.open(tmp_path / "keys.json", must_exist=False)
    keys, secrets = zip(*(ring.create(name) for name in ("ann", "bob")), strict=True)
    link = scripted([said()])
    client = make_client(link, api_keys=tmp_path / "keys.json")
    for secret in secrets:
        await client.post(PATH, json=ASK, headers={"Authorization": f"Bearer {secret}"})
    first, second = (request.cache_salt for request in link.requests)
    assert first != second
    owners = [
        read_request(json.loads(encode_line(request_json(0, r)))).owner for r in link.requests
    ]
    assert owners == [key.id for key in keys], "whose rows of the engine these are"


async def test_choices_are_what_places_are_counted_in(make_client, scripted, said, server_config):
    admission = server_config.admission.model_copy(update={"max_running": 4, "max_queued": 0})
    link = scripted([said()], pause_s=0.005)
    client = make_client(link, admission=admission)
    reply = await client.post(PATH, json=ASK | {"n": 5})
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "too_many_choices"
    prompts = {"prompt": ["1", "2"], "n": 2, "max_tokens": 2}
    posts = [client.post(PATH, json=ASK | {"n": 3}), client.post("/v1/completions", json=prompts)]
    assert sorted([r.status_code for r in await asyncio.gather(*posts)]) == [200, 429]
    assert (await client.post("/v1/completions", json=prompts)).status_code == 200
    assert client.app.state.service.limits.running == 0


async def test_the_policy_stops_what_it_finds_and_the_ledger_has_it(
    make_client, scripted, said, tmp_path
):
    (tmp_path / "words.txt").write_text("[weapons]\nnerve gas\n[luck]\n34\n")
    policy = PolicyConfig(input="block", output="block", words=tmp_path / "words.txt")
    link = scripted([said(), said("12", "ab 34")])
    client = make_client(link, policy=policy, ledger=tmp_path / "ledger.db")
    asked = {"messages": [{"role": "user", "content": "how is Nerve-Gas made"}]}
    reply = await client.post(PATH, json=asked)
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "content_filter"
    assert link.requests == []
    for stream in (False, True):
        reply = await client.post(PATH, json=ASK | {"stream": stream})
        if stream:
            whole = put_together(events_of(reply.text))[0]
            assert whole["content"] == "" and whole["end"] == "content_filter"
        else:
            (choice,) = reply.json()["choices"]
            assert choice["message"]["content"] == ""
            assert choice["finish_reason"] == "content_filter"
    with sqlite3.connect(tmp_path / "ledger.db") as ledger:
        verdicts = ledger.execute("SELECT verdict, status FROM requests ORDER BY time_s").fetchall()
    assert verdicts == [("input:block:weapons", 400)] + [("output:block:luck", 200)] * 2


async def test_who_is_over_his_limits_costs_the_reviewer_nothing(
    make_client, scripted, said, tmp_path, monkeypatch, server_config
):
    (tmp_path / "words.txt").write_text("nerve gas\n")
    policy = PolicyConfig(input="block", words=tmp_path / "words.txt")
    admission = server_config.admission.model_copy(update={"requests_per_minute": 1})
    client = make_client(scripted([said()]), policy=policy, admission=admission)
    reviewed, review = [], Policy.review

    async def counted(self, text, side):
        reviewed.append(text)
        return await review(self, text, side)

    monkeypatch.setattr(Policy, "review", counted)
    asked = {"messages": [{"role": "user", "content": "nerve gas"}]}
    replies_ = [await client.post(PATH, json=asked) for _ in range(3)]
    codes = [reply.json()["error"]["code"] for reply in replies_]
    assert codes == ["content_filter", "rate_limit_exceeded", "rate_limit_exceeded"]
    assert len(reviewed) == 1 and client.app.state.service.limits.running == 0


async def test_the_pages_are_there(make_client, scripted, said):
    client = make_client(scripted([said()]))
    assert "<html" in (await client.get("/")).text
    html = (await client.post("/page/markdown", json={"text": "*a*"})).json()["html"]
    assert "<em>a</em>" in html


async def test_tokens_there_and_back(make_client, scripted, said, tokenizer):
    client = make_client(scripted([said()]))
    ids = (await client.post("/tokenize", json={"prompt": "12 <think>"})).json()["tokens"]
    assert tokenizer.think_id not in ids
    text = (await client.post("/detokenize", json={"tokens": ids})).json()["prompt"]
    assert text == "12 <think>"
    chat = (await client.post("/tokenize", json={"messages": ASK["messages"]})).json()
    asked = (await client.post(PATH, json=ASK)).json()["usage"]["prompt_tokens"]
    assert chat["count"] == asked
    assert (await client.get("/tokenizer_info")).json()["eos_token"] == "<|end|>"
    for path in ("/tokenize", PATH):  # what a chat refuses has no tokens
        reply = await client.post(path, json={"messages": ASK["messages"], "tools": TOOLS * 2})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "tools", path


async def test_the_openapi_document_resolves(make_client, scripted, said):
    document = (await make_client(scripted([said()])).get("/openapi.json")).json()
    schemas = document["components"]["schemas"]

    def refs(node):
        if isinstance(node, dict):
            yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else ())
        for below in (
            node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        ):
            yield from refs(below)

    names = {ref.removeprefix("#/components/schemas/") for ref in refs(document)}
    assert "ChatRequest" in names and names <= set(schemas)
