"""Who may not ask: pages of other sites. Who may not get away: readers that leave at the last moment, or hide words."""

import asyncio
import contextlib
import json
import socket
import sqlite3
import threading

import httpx
import pytest

from nalar.policy import PolicyConfig
from nalar.server.engine.messages import Event
from nalar.server.http import listening, service
from nalar.server.http.address import listen, url_of
from nalar.server.http.app import create_app
from nalar.server.http.json_text import JsonText
from nalar.server.keys import KeyRing
from nalar.server.ledger_writer import LedgerWriter
from nalar.server.prices_config import PriceTable

PATH = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "say 12"}]}
ESCAPED = '{"a": "b\\u006f\\u200bmb"}'
THOUGHT = {"role": "assistant", "content": "12"}
OUTPUT = {"role": "tool", "content": "12"}


def called(arguments):
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}


TOOL = {"name": "f", "parameters": {"properties": {"id": {"description": "a bomb"}}}}
pytestmark = pytest.mark.anyio


def calling(arguments):
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "c", "function": function}]}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "rebound.example:8000", "Origin": "http://rebound.example:8000"}, 403),
        ({"Host": "127.0.0.1.example"}, 403),
        ({"Host": "user@127.0.0.1:1@rebound.example"}, 403),
        ({"Origin": "https://evil.example", "Content-Type": "text/plain"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    ],
)
async def test_a_page_of_another_site_is_not_answered(
    make_client, scripted, tokenizer, headers, status
):
    client = make_client(scripted([[tokenizer.end_think_id, 9, tokenizer.end_id]]))
    assert (await client.post(PATH, json=ASK, headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"headers": {"Origin": "null"}}, 403, "permission_error"),
        ({"json": ASK | {"model": "another"}}, 404, "not_found_error"),
        ({"json": {"messages": 1}}, 400, "invalid_request_error"),
    ],
)
async def test_errors_at_anthropics_paths_have_its_form_and_the_requests_id(
    make_client, scripted, change, status, kind
):
    reply = await make_client(scripted([])).post("/v1/messages", **({"json": ASK} | change))
    told = reply.json()
    assert (reply.status_code, told["type"], told["error"]["type"]) == (status, "error", kind)
    assert told["request_id"] == reply.headers["x-request-id"]


async def test_with_keys_any_name_will_do_since_no_browser_sends_them_by_itself(
    make_client, scripted, tokenizer, tmp_path
):
    _, secret = KeyRing.open(tmp_path / "keys.json", must_exist=False).create("ann")
    engine = scripted([[tokenizer.end_think_id, 9, tokenizer.end_id]])
    client = make_client(engine, api_keys=tmp_path / "keys.json")
    headers = {"Host": "api.example", "Authorization": f"Bearer {secret}"}
    assert (await client.post(PATH, json=ASK, headers=headers)).status_code == 200


def preflight(origin):
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }


@pytest.mark.parametrize("with_keys", [False, True])
async def test_pages_of_origins_that_are_named_may_ask_and_no_others(
    make_client, scripted, tokenizer, tmp_path, with_keys
):
    engine = scripted([[tokenizer.end_think_id, 9, tokenizer.end_id]])
    _, secret = KeyRing.open(tmp_path / "keys.json", must_exist=False).create("ann")
    keys = tmp_path / "keys.json" if with_keys else None
    named, other = "https://chat.example", "https://evil.example"
    client = make_client(engine, api_keys=keys, allowed_origins=(named,))
    as_ann = {"Authorization": f"Bearer {secret}"}
    said = await client.options(PATH, headers=preflight(named))
    assert said.status_code == 200
    assert said.headers["access-control-allow-origin"] == named
    assert "authorization" in said.headers["access-control-allow-headers"]
    foreign = {"Origin": named, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    for body, status in ((ASK, 200), ({}, 400)):
        reply = await client.post(PATH, json=body, headers=foreign | as_ann)
        assert reply.status_code == status
        assert reply.headers["access-control-allow-origin"] == named
        assert "access-control-allow-credentials" not in reply.headers
    assert (await client.options(PATH, headers=preflight(other))).status_code == 400
    reply = await client.post(PATH, json=ASK, headers=foreign | as_ann | {"Origin": other})
    assert "access-control-allow-origin" not in reply.headers
    assert reply.status_code == (200 if with_keys else 403)
    plain = make_client(engine, api_keys=keys)
    reply = await plain.options(PATH, headers=preflight(named))
    assert reply.status_code in (403, 405)
    assert "access-control-allow-origin" not in reply.headers


async def test_who_leaves_while_his_row_is_written_is_charged_all_the_same(
    make_client, scripted, tokenizer, tmp_path, monkeypatch
):
    key, secret = KeyRing.open(tmp_path / "keys.json", must_exist=False).create(
        "ann", monthly_budget_usd=1
    )
    client = make_client(
        scripted([[tokenizer.end_think_id, 9, tokenizer.end_id]]),
        api_keys=tmp_path / "keys.json",
        ledger=tmp_path / "ledger.db",
        prices=PriceTable(input_usd=1, cached_input_usd=1, output_usd=1),
    )
    is_writing, add = asyncio.Event(), LedgerWriter.add

    async def slow(self, row):
        is_writing.set()
        await asyncio.sleep(0.05)
        await add(self, row)

    monkeypatch.setattr(LedgerWriter, "add", slow)
    headers = {"Authorization": f"Bearer {secret}"}
    asking = asyncio.create_task(client.post(PATH, json=ASK, headers=headers))
    await is_writing.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.3)
    service = client.app.state.service
    (total,) = service.writer.ledger.sums([])
    budgets = service.limits.budgets
    (month,) = budgets._spent
    assert budgets.spent(key.id, month) == total.cost_picodollars > 0
    assert service.limits.running == 0 and budgets.reserved(key.id) == 0


@pytest.mark.parametrize(
    "hidden",
    [
        {"tools": [{"type": "function", "function": TOOL}]},
        {"messages": [*ASK["messages"], {"role": "assistant", "reasoning_content": "a bomb"}]},
        {"messages": [*ASK["messages"], {"role": "assistant", "tool_calls": [called(ESCAPED)]}]},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"required": ["a bomb"]}},
            }
        },
    ],
)
async def test_the_policy_reads_all_that_the_model_reads(make_client, scripted, tmp_path, hidden):
    (tmp_path / "words.txt").write_text("bomb\n")
    policy = PolicyConfig(input="block", words=tmp_path / "words.txt")
    reply = await make_client(scripted([]), policy=policy).post(PATH, json=ASK | hidden)
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "content_filter"


@pytest.mark.parametrize("step", [1, 2, 3, 100])
@pytest.mark.parametrize("window", [1, 200, None])
async def test_no_word_gets_out_behind_escapes_of_json(
    make_client, scripted, tokenizer, tmp_path, step, window
):
    (tmp_path / "words.txt").write_text("bomb\n")
    policy = PolicyConfig(output="block", words=tmp_path / "words.txt", window_chars=window)
    t = tokenizer
    escaped = (
        '{"a": "x\\n\\u0062\\uff4f\\u200Dmb"}'  # a line, then bomb, with a wide o and a joiner
    )
    call = [t.tools.call, *t.encode(f"f {escaped}"), t.tools.end_call]
    scripts = [
        [[t.end_think_id, *call, t.end_id]],
        [[t.end_think_id, *t.encode(escaped), t.end_id]],
    ]
    client = make_client(scripted(scripts, step=step), policy=policy)
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    for more in (tools, {"response_format": {"type": "json_object"}}):
        reply = await client.post(PATH, json=ASK | more | {"stream": True})
        assert '"content_filter"' in reply.text and "0062" not in reply.text
    assert JsonText().feed('\\\\u0062 \\"\\uzz\\ud83d\\ude00') == '\\u0062 "uzz😀'


async def test_texts_that_no_context_holds_are_not_encoded(make_client, scripted, monkeypatch):
    client = make_client(scripted([]))
    tokenizer = client.app.state.service.dialect.tokenizer
    monkeypatch.setattr(type(tokenizer), "encode", lambda *_, **__: pytest.fail("encoded"))
    long = "a" * 1_000_000
    for path, body in (
        ("/tokenize", {"prompt": long}),
        ("/tokenize", {"messages": [{"role": "user", "content": ""}] * 50_000}),
        ("/v1/completions", {"prompt": long}),
        ("/v1/completions", {"prompt": ["a"] * 5_000}),
        (PATH, {"messages": [{"role": "user", "content": long}]}),
        ("/tokenize", {"messages": [THOUGHT | {"reasoning_content": long}]}),
        (PATH, {"messages": [THOUGHT | {"reasoning_content": long}]}),
        (PATH, {"messages": [calling(long), OUTPUT]}),
        (
            PATH,
            ASK | {"tools": [{"function": {"name": "f", "parameters": {"enum": [1] * 50_000}}}]},
        ),
        (PATH, ASK | {"chat_template_kwargs": {"x": [long]}}),
    ):
        assert (await client.post(path, json=body)).status_code == 400


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "5" * 200}],
        [ASK["messages"][0], THOUGHT | {"reasoning_content": "5" * 200}],
        [ASK["messages"][0], calling("5" * 200), OUTPUT],
    ],
)
async def test_long_texts_are_encoded_beside_the_loop(
    make_client, scripted, tokenizer, monkeypatch, messages
):
    client = make_client(scripted([[tokenizer.end_think_id, 9, tokenizer.end_id]]))
    monkeypatch.setattr(service, "_LONG_CHARS", 150)
    threads, encode = [], type(tokenizer).encode

    def noted(*args, **settings):
        threads.append(threading.current_thread())
        return encode(*args, **settings)

    monkeypatch.setattr(type(tokenizer), "encode", noted)
    for path in ("/tokenize", PATH):
        assert (await client.post(path, json={"messages": messages})).status_code == 200
    assert threads and threading.main_thread() not in threads


def test_connections_that_do_not_ask_are_closed(server_config, scripted, monkeypatch):
    monkeypatch.setattr(listening, "_HEAD_S", 0.2)
    body = server_config.body.model_copy(update={"read_s": 0.2})
    config = server_config.model_copy(update={"body": body})
    sock = listen("127.0.0.1", 0)
    server = listening.server_of(create_app(config, scripted([])), config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        with socket.create_connection(sock.getsockname(), timeout=10) as slow:
            slow.sendall(b"POST /health HTTP/1.1\r\nHost: ")
            assert slow.recv(100) == b""
        with socket.create_connection(sock.getsockname(), timeout=10) as slow:
            head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n"
            slow.sendall(head.encode())
            assert b" 408 " in slow.recv(1000)
    finally:
        server.should_exit = True
        thread.join(30)


async def test_who_reads_nothing_is_cut_off_and_his_row_says_so(
    server_config, scripted, tokenizer, tmp_path
):
    config = server_config.model_copy(
        update={"send_timeout_s": 0.3, "ledger": tmp_path / "l.db", "keep_alive_s": 60}
    )
    link = scripted([tokenizer.encode("5" * 3000)], pause_s=0.0001)
    app = create_app(config, link)
    sock = listen("127.0.0.1", 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server = listening.server_of(app, config)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    body = json.dumps(ASK | {"stream": True, "n": 8}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with stuck:
        stuck.connect(sock.getsockname())
        stuck.sendall(head.encode() + body)
        await until(lambda: link.aborted == [0])
        limits = app.state.service.limits
        await until(lambda: limits.running == 0)
    with sqlite3.connect(tmp_path / "l.db") as ledger:
        rows = ledger.execute("SELECT status, finish_reason, completion_tokens FROM requests")
        ((status, reason, tokens),) = rows.fetchall()
    assert (status, reason) == (408, "send_timeout") and 0 < tokens < 8 * 400
    async with httpx.AsyncClient() as client:  # who reads is waited for, however slow the model is
        link.scripts, link.pause_s = [[tokenizer.end_think_id, 9, tokenizer.end_id]], 0.4
        url = url_of(sock) + PATH
        reply = await client.post(url, json=ASK | {"stream": True}, timeout=60)
        assert reply.text.endswith("data: [DONE]\n\n")
    server.should_exit = True
    await serving


async def test_who_sends_another_request_ahead_and_leaves_ends_the_first(
    server_config, scripted, tokenizer
):
    link = scripted([tokenizer.encode("5" * 400)], pause_s=0.05)
    app = create_app(server_config, link)
    sock = listen("127.0.0.1", 0)
    server = listening.server_of(app, server_config)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    body = json.dumps(ASK | {"stream": True}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    writer.write(head.encode() + body)
    await reader.readline()
    writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    await asyncio.sleep(0.2)
    writer.close()
    await until(lambda: link.aborted == [0])
    server.should_exit = True
    await serving


async def test_what_was_drawn_and_not_read_is_charged(make_client, scripted, tokenizer, tmp_path):
    class Ahead(scripted):
        """Has drawn more than was taken by the time its reader leaves."""

        async def stream(self, request, unread=None):
            try:
                yield Event(0, (9, 9), (-0.5, -0.5))
                await asyncio.sleep(60)
            finally:
                unread.append(Event(0, (tokenizer.end_think_id, 9, 9), (-0.5,) * 3))

    client = make_client(Ahead([]), ledger=tmp_path / "l.db")
    service = client.app.state.service
    asking = asyncio.create_task(client.post(PATH, json=ASK))
    await until(lambda: service.limits.running == 1)
    await asyncio.sleep(0.1)
    asking.cancel()
    await until(lambda: service.limits.running == 0)
    (total,) = service.writer.ledger.sums([])
    assert (total.completion_tokens, total.reasoning_tokens) == (5, 2)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"GET /health?", b"a" * 10_000),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ", b"a" * 10_000),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X-Many: a\r\n" * 1000),
        (
            b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            b"X-Trailer: a\r\n" * 1000,
        ),
        (b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 1000),
    ],
)
def test_a_head_without_an_end_is_cut_off(server, first, again):
    """The server keeps what has come of it, so there is a limit."""
    host, port = server.removeprefix("http://").split(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as sock,
        contextlib.suppress(ConnectionError),
    ):
        sock.sendall(first + again * 2_000)
        while sock.recv(100_000):
            pass
    assert httpx.get(f"{server}/health").status_code == 200


async def test_who_leaves_the_queue_leaves_his_place(server_config, scripted, tokenizer):
    admission = server_config.admission.model_copy(update={"max_running": 1})
    config = server_config.model_copy(update={"admission": admission})
    link = scripted([[*tokenizer.encode("5" * 300), tokenizer.end_id]], pause_s=0.05)
    app = create_app(config, link)
    sock = listen("127.0.0.1", 0)
    server = listening.server_of(app, config)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    url, limits = url_of(sock) + PATH, app.state.service.limits
    async with httpx.AsyncClient() as client, httpx.AsyncClient() as other:
        first = asyncio.create_task(client.post(url, json=ASK, timeout=60))
        await until(lambda: limits.running == 1)
        second = asyncio.create_task(other.post(url, json=ASK, timeout=60))
        await until(lambda: limits.queued == 1)
        second.cancel()
        await until(lambda: limits.queued == 0)
        assert limits.running == 1 and len(link.requests) == 1
        first.cancel()
        await until(lambda: limits.running == 0)
    server.should_exit = True
    await serving


async def until(holds):
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)
