"""Requests that fail: what they cost, what their rows, logs and replies say of it."""

import asyncio
import json
import sqlite3

import pytest

from nalar.config import UserError
from nalar.policy import PolicyConfig
from nalar.server.engine.link import Unavailable
from nalar.server.engine.messages import EngineError
from nalar.server.http.logs import JsonLines
from nalar.server.keys import KeyRing
from nalar.server.ledger import Ledger, LedgerError
from nalar.server.prices_config import PriceTable
from nalar.server.wire.chat import ChatWriter

PATH = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "say 12"}]}
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def drawn(tokenizer):
    return [
        *tokenizer.encode("12 is"),
        tokenizer.end_think_id,
        *tokenizer.encode("34"),
        tokenizer.end_id,
    ]


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "ledger.db"


def rows_of(ledger, *columns):
    with sqlite3.connect(ledger) as opened:
        return opened.execute(
            f"SELECT {', '.join(columns)} FROM requests ORDER BY time_s"
        ).fetchall()


async def counted(client):
    """Once nothing is under way and every row is kept."""
    await asyncio.wait_for(_quiet(client.app.state.service), 10)


async def _quiet(service):
    while service._kept:
        await asyncio.sleep(0.005)


@pytest.fixture
def breaking(scripted):
    """An engine that fails after some of its events."""

    class Breaking(scripted):
        def __init__(self, script, error, after):
            super().__init__([script])
            self.error, self.after = error, after

        async def stream(self, request, *more):
            left = self.after
            async for event in super().stream(request, *more):
                if not left:
                    raise self.error
                left -= 1
                yield event

    return Breaking


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError(at="schema", got="x", want="y"), 400),
        (EngineError("it died"), 500),
        (Unavailable("it loads"), 503),
    ],
)
async def test_who_gets_nothing_pays_nothing(
    make_client, breaking, drawn, tmp_path, ledger, error, status
):
    _, secret = KeyRing.open(tmp_path / "keys.json", must_exist=False).create(
        "ann", monthly_budget_usd=0.01
    )
    prices = PriceTable(input_usd=1000, output_usd=1)
    client = make_client(
        breaking(drawn, error, 0), api_keys=tmp_path / "keys.json", ledger=ledger, prices=prices
    )
    for stream in (False, True, False):  # 8 prompt tokens would cost 0.008 each time
        headers = {"Authorization": f"Bearer {secret}"}
        reply = await client.post(
            PATH, json=ASK | {"stream": stream, "max_tokens": 1}, headers=headers
        )
        assert reply.status_code == status
        await counted(client)
    columns = ("status", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_picodollars")
    assert rows_of(ledger, *columns) == [(status, 0, 0, 0, 0)] * 3


async def test_who_got_a_part_pays_for_it(make_client, breaking, drawn, ledger):
    prices = PriceTable(input_usd=1, cached_input_usd=1, output_usd=1)
    client = make_client(breaking(drawn, EngineError("it died"), 2), ledger=ledger, prices=prices)
    await client.post(PATH, json=ASK | {"stream": True})
    await counted(client)
    ((status, prompt, completion, cost),) = rows_of(
        ledger, "status", "prompt_tokens", "completion_tokens", "cost_picodollars"
    )
    assert (status, completion) == (500, 2) and prompt > 0
    assert cost == (prompt + completion) * 10**6


async def test_of_several_prompts_those_without_a_token_are_free(
    make_client, scripted, drawn, ledger, tokenizer
):
    client = make_client(scripted([drawn, EngineError("it died")]), ledger=ledger)
    ask = {"prompt": ["12345", "22222222"], "max_tokens": 9}
    reply = await client.post("/v1/completions", json=ask)
    assert reply.status_code == 500
    await counted(client)
    ((prompt,),) = rows_of(ledger, "prompt_tokens")
    assert prompt == len(tokenizer.encode("12345"))


async def test_who_leaves_pays_for_the_prompt_that_he_made_be_read(
    make_client, scripted, drawn, ledger
):
    """Or prompts without end could be had read for nothing, past all limits."""
    link = scripted([drawn], pause_s=30)
    client = make_client(link, ledger=ledger)
    came = iter([{"type": "http.request", "body": json.dumps(ASK).encode()}])

    async def receive():
        if message := next(came, None):
            return message
        while not link.requests:
            await asyncio.sleep(0.005)
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    scope = {"type": "http", "method": "POST", "path": PATH, "headers": [], "query_string": b""}
    await asyncio.wait_for(client.app(scope, receive, send), 10)
    await counted(client)
    num_prompt = len(link.requests[0].prompt_ids)
    assert rows_of(ledger, "status", "prompt_tokens", "completion_tokens") == [(499, num_prompt, 0)]


@pytest.mark.parametrize("path", ["/usage", PATH, "/v1/messages"])
async def test_a_ledger_that_fails_is_the_servers_fault_and_none_of_the_clients_business(
    make_client, scripted, drawn, ledger, tmp_path, monkeypatch, path
):
    def broken(self, *args):
        raise LedgerError(at=str(self.path), got="a damaged file", want="a ledger")

    (tmp_path / "words.txt").write_text("[weapons]\n12\n")
    policy = PolicyConfig(input="block", words=tmp_path / "words.txt")
    # What is blocked is counted too, and is where the ledger fails first.
    client = make_client(scripted([drawn]), ledger=ledger, policy=policy)
    monkeypatch.setattr(Ledger, "sums", broken)
    monkeypatch.setattr(Ledger, "add", broken)
    if path == "/usage":
        reply = await client.get(path)
    else:
        reply = await client.post(path, json=ASK | {"max_tokens": 9})
    assert reply.status_code == 503 and int(reply.headers["retry-after"]) == 5
    assert str(tmp_path) not in reply.text and "damaged" not in reply.text
    if path != "/v1/messages":
        assert reply.json()["error"]["code"] == "ledger_unavailable"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 2])
async def test_a_bug_is_no_fault_of_the_clients(
    make_client, breaking, drawn, ledger, stream, after
):
    client = make_client(breaking(drawn, RuntimeError("of ours"), after), ledger=ledger)
    reply = await client.post(PATH, json=ASK | {"stream": stream})
    await counted(client)
    assert reply.status_code == (200 if stream and after else 500)
    assert "internal_error" in reply.text and "of ours" not in reply.text
    assert rows_of(ledger, "status") == [(500,)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_in_writing_the_reply_is_not_a_client_who_left(
    make_client, scripted, drawn, ledger, stream, monkeypatch
):
    def bug(self, said):
        raise TypeError("of ours")

    monkeypatch.setattr(ChatWriter, "choices", bug)
    client = make_client(scripted([drawn]), ledger=ledger)
    reply = await client.post(PATH, json=ASK | {"stream": stream})
    await counted(client)
    assert "internal_error" in reply.text
    assert rows_of(ledger, "status") == [(500,)]


@pytest.mark.parametrize("after", [0, 2])
async def test_every_reply_to_a_bug_and_its_line_have_the_requests_id(
    make_client, breaking, drawn, caplog, after
):
    caplog.set_level("INFO")
    client = make_client(breaking(drawn, RuntimeError("of ours"), after))
    ids = {"X-Request-Id": "mine-1"}
    reply = await client.post(PATH, json=ASK | {"stream": bool(after)}, headers=ids)
    assert reply.headers["x-request-id"] == "mine-1"
    lines = [line for line in caplog.records if line.name.startswith("nalar")]
    assert {line.id for line in lines} == {"mine-1"}
    assert [line.status for line in lines if line.message == "request"] == [500]
    assert any(line.exc_info and "of ours" in str(line.exc_info[1]) for line in lines)


async def test_a_line_joins_a_reply_to_its_bill_and_says_nothing_of_it(
    make_client, scripted, drawn, ledger, tmp_path, caplog
):
    caplog.set_level("INFO")
    key, secret = KeyRing.open(tmp_path / "keys.json", must_exist=False).create("ann")
    client = make_client(scripted([drawn]), api_keys=tmp_path / "keys.json", ledger=ledger)
    headers = {"Authorization": f"Bearer {secret}"}
    reply = await client.post(PATH, json=ASK | {"model": "alias"}, headers=headers)
    await client.post(PATH, json={"messages": []}, headers=headers)
    done, refused = [line for line in caplog.records if line.message == "request"]
    usage = reply.json()["usage"]
    ((row,),) = rows_of(ledger, "request_id")
    assert done.reply == reply.json()["id"] == row and done.key == key.id
    assert done.model == "alias" and done.status == 200
    assert done.prompt_tokens == usage["prompt_tokens"]
    assert done.completion_tokens == usage["completion_tokens"]
    assert refused.key == key.id and not hasattr(refused, "reply")
    written = JsonLines().format(done)
    assert "say 12" not in written and secret not in written
    assert set(json.loads(written)) >= {"id", "reply", "key", "model", "prompt_tokens"}


async def test_a_line_says_what_became_of_a_stream_not_how_it_began(
    make_client, breaking, drawn, caplog
):
    caplog.set_level("INFO")
    client = make_client(breaking(drawn, EngineError("it died"), 2))
    await client.post(PATH, json=ASK | {"stream": True})
    (line,) = [line for line in caplog.records if line.message == "request"]
    assert line.status == 500 and line.completion_tokens == 2
