"""Completions over ASGI, the engine played by a script: lists that fit their text, prompts that are only scored."""

import json
from itertools import pairwise

import httpx
import pytest

from nalar.server.engine.messages import Event
from nalar.server.wire.sampling import LOWEST_LOGPROB

PATH = "/v1/completions"
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize("step", [1, 2, 50])
async def test_offsets_say_where_in_the_text_a_token_begins(make_client, scripted, tokenizer, step):
    drawn = [*tokenizer.encode("é思a"), tokenizer.end_think_id, *tokenizer.encode("34é")[:-1]]
    prompt = [tokenizer.user_id, *tokenizer.encode("say é")]
    link = scripted([[*drawn, tokenizer.end_id]], step=step)
    for echo in (False, True):
        body = {"prompt": prompt, "logprobs": 0, "max_tokens": 50, "echo": echo}
        reply = (await make_client(link).post(PATH, json=body)).json()["choices"][0]
        text, lists = reply["text"], reply["logprobs"]
        assert text == ("say é" if echo else "") + "é思a34\ufffd"
        ids = [*(prompt if echo else []), *drawn, tokenizer.end_id]
        ends = [*lists["text_offset"][1:], len(text)]
        assert len(ids) == len(lists["tokens"]) == len(ends)
        for token_id, start, end in zip(ids, lists["text_offset"], ends, strict=True):
            if token_id in tokenizer.special_ids:
                assert start == end or end == len(text)  # what is left of half a character
            elif tokenizer.token_bytes(token_id).isascii():
                assert text[start:end] == tokenizer.token_bytes(token_id).decode()
        assert all(a <= b for a, b in pairwise(lists["text_offset"])) and ends[-2] <= len(text)


async def test_a_prompt_that_is_only_scored_has_no_completion(
    make_client, scripted, tokenizer, tmp_path
):
    client = make_client(scripted([[9, 9, 9]]), ledger=tmp_path / "l.db")
    body = {"prompt": "say 12", "max_tokens": 0, "echo": True, "logprobs": 1}
    reply = (await client.post(PATH, json=body)).json()
    (choice,) = reply["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("say 12", "length")
    assert len(choice["logprobs"]["tokens"]) == reply["usage"]["prompt_tokens"]
    assert reply["usage"]["completion_tokens"] == 0
    (total,) = client.app.state.service.writer.ledger.sums([])
    assert total.completion_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, {"prompt": "a", "logprobs": 1}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "logprobs": True},
        ),
    ],
)
async def test_log_probabilities_that_are_no_numbers_are_json_all_the_same(
    make_client, scripted, tokenizer, path, body, stream
):
    class Broken(scripted):
        async def stream(self, request, *_):
            nan = float("nan")
            ids = (tokenizer.end_think_id, 9, tokenizer.end_id)
            yield Event(0, ids, (nan,) * 3, (((9, nan),),) * 3, finish_reason="stop")

    app = make_client(Broken([])).app
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        reply = await client.post(path, json=body | {"stream": stream})
    assert reply.status_code == 200 and str(LOWEST_LOGPROB) in reply.text
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if "{" in line]
    for line in lines:
        json.loads(line, parse_constant=pytest.fail)
