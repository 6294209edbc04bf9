"""Chats over ASGI, the engine played by a script."""

import json

import httpx
import pytest

from nalar.server.http.app import create_app

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "say 12"}]}


@pytest.fixture
def make_client(server_config):
    def make(link, **changes):
        app = create_app(server_config.model_copy(update=changes), link)
        transport = httpx.ASGITransport(app)
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    return make


def events_of(text):
    lines = [line for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def said(tokenizer, thought="12 is", answer="34"):
    return [*tokenizer.encode(thought), tokenizer.end_think_id, *tokenizer.encode(answer), tokenizer.end_id]


@pytest.mark.anyio
async def test_x(make_client, scripted, tokenizer):
    client = make_client(scripted([said(tokenizer)]))
    r = await client.post("/v1/chat/completions", json=ASK)
    print(r.text)
    r = await client.post("/v1/chat/completions", json=ASK | {"stream": True, "stream_options": {"include_usage": True}})
    print(r.text)
    r = await client.post("/v1/completions", json={"prompt": [[5, 6, 7], [8, 9, 10]], "max_tokens": 3, "logprobs": 1, "temperature": 0})
    print(r.text)
    for p in ("/health", "/v1/models", "/v1/models/alias", "/v1/models/x", "/tokenizer_info", "/about", "/metrics", "/usage", "/nope", "/openapi.json"):
        r = await client.get(p)
        print(p, r.status_code, r.text[:300])
    assert 0
