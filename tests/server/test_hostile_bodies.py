"""Whatever a body is, the answer is 4xx in OpenAI's form, and the engine never hears of it."""

import json

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.server import hostile

pytestmark = pytest.mark.anyio
POSTS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
USER = {"role": "user", "content": "x"}
RAW = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"3",
    b'"text"',
    b"\xff\xfe{}",
    b'{"messages": "\xc3\x28"}',
    b'{"prompt": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}], "tokens": ["\\ud800"]}',
    b'{"temperature": NaN, "messages": [], "prompt": "x", "tokens": 1}',
    b'{"temperature": 1e999, "messages": [], "prompt": "x", "tokens": 1}',
    b'{"temperature": -Infinity}',
    b'{"n": ' + b"9" * 5000 + b"}",
    b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}",
    b"[" * 100_000,
    b'{"a": ' * 50_000,
    b'{"messages": [{"role": "user"}], "messages": 3, "prompt": {}, "tokens": {}}',
]
CHATS = [
    {},
    {"messages": []},
    {"messages": {}},
    {"messages": [3]},
    {"messages": [{"role": "wizard", "content": "x"}]},
    {"messages": [{"role": "user", "content": {"a": 1}}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    {"messages": [{"role": "control", "content": "thinking"}]},
    {"messages": [{"role": "tool", "content": "x"}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
    *(
        {"messages": [USER], **bad}
        for bad in (
            {"n": 0},
            {"n": -1},
            {"n": 10**30},
            {"n": 5000},
            {"max_tokens": 0},
            {"max_tokens": 1.5},
            {"max_tokens": "many"},
            {"temperature": -1},
            {"temperature": 1e300},
            {"top_p": 0},
            {"top_p": 2},
            {"top_k": -7},
            {"min_p": 9},
            {"presence_penalty": 100},
            {"repetition_penalty": 0},
            {"logit_bias": {"a": 1}},
            {"logit_bias": {"5": 1000}},
            {"logit_bias": {"99999999": 1}},
            {"logprobs": True, "top_logprobs": 21},
            {"stop": [1]},
            {"stop": ["a"] * 17 + [str(i) for i in range(17)]},
            {"stop_token_ids": [-1]},
            {"stop_token_ids": [10**8]},
            {"min_tokens": -1},
            {"stream": "perhaps"},
            {"tools": [{}]},
            {"tools": [{"type": "web"}]},
            {"tool_choice": "required"},
            {"tool_choice": {"type": "function", "function": {"name": "nobody"}}},
            {"tool_choice": "sometimes"},
            {"response_format": {"type": "xml"}},
            {"response_format": {"type": "json_schema"}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
            {"reasoning_effort": "heroic"},
            {"thinking": 3},
            {"thinking": {"type": "maybe"}},
            {"thinking_token_budget": -1},
            {"chat_template_kwargs": []},
            {"chat_template_kwargs": {"enable_thinking": "yes"}},
            {"priority": 2**40},
            {"cache_salt": "s" * 600},
        )
    ),
]
COMPLETIONS = [
    {},
    {"prompt": ""},
    {"prompt": []},
    {"prompt": [[]]},
    {"prompt": [-1]},
    {"prompt": [10**6]},
    {"prompt": [2**70]},
    {"prompt": ["a", 3]},
    {"prompt": "x", "max_tokens": 0},
    {"prompt": "x", "logprobs": 50},
    {"prompt": "x", "suffix": "y"},
    {"prompt": "x", "best_of": 4},
    {"prompt": ["x"] * 2000},
]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def harmless(make_client, scripted, tokenizer):
    return make_client(scripted([[tokenizer.end_id]]))


def check(reply, what):
    assert 400 <= reply.status_code < 500, (what, reply.status_code, reply.text)
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"], what
    assert isinstance(error["type"], str) and isinstance(error["code"], str)


async def test_bytes_that_are_no_request(make_client, scripted):
    client = make_client(scripted([AssertionError("the engine was asked")]))
    for path in POSTS:
        for raw in RAW:
            check(await client.post(path, content=raw), (path, raw[:60]))


@pytest.mark.parametrize(
    ("path", "bodies"), [("/v1/chat/completions", CHATS), ("/v1/completions", COMPLETIONS)]
)
async def test_objects_that_are_no_request(make_client, scripted, path, bodies):
    client = make_client(scripted([AssertionError("the engine was asked")]))
    for body in bodies:
        for stream in (False, True):
            check(await client.post(path, json={"stream": stream, **body}), body)


async def test_a_body_beyond_the_limit_is_not_read(make_client, scripted, server_config):
    limits = server_config.body.model_copy(update={"max_body_bytes": 2000})
    client = make_client(scripted([AssertionError()]), body=limits)
    read = 0

    async def endless():
        nonlocal read
        while True:
            read += 1
            yield b"{" * 500

    reply = await client.post("/v1/chat/completions", content=endless())
    check(reply, "endless")
    assert reply.status_code == 413 and read <= 6
    reply = await client.post("/v1/chat/completions", content=b" " * 3000)
    assert reply.status_code == 413 and reply.json()["error"]["code"] == "request_too_large"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    (
        "messages",
        "prompt",
        "tokens",
        "n",
        "stop",
        "tools",
        "tool_choice",
        "response_format",
        "thinking",
    )
    + ("reasoning", "stream", "logprobs", "seed", "logit_bias", "stream_options", "max_tokens")
    + ("chat_template_kwargs", "temperature", "echo", "model", "add_special_tokens")
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(FIELDS, VALUES, max_size=5), st.sampled_from(POSTS))
def test_nothing_gives_a_5xx(harmless, body, path):
    async def ask():
        return await harmless.post(path, content=json.dumps(body).encode())

    reply = anyio.run(ask)
    assert reply.status_code == 200 or check(reply, body) is None


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 150), pytest.param(1, 1000, marks=pytest.mark.slow)]
)
async def test_a_thousand_hostile_bodies(make_client, scripted, server_config, seed, count):
    limits = server_config.body.model_copy(update={"max_body_bytes": 2**20})
    client = make_client(scripted([AssertionError("the engine was asked")]), body=limits)
    wrong = []
    for path, body, kind in hostile.bodies(count, seed):
        reply = await client.post(path, content=body)
        error = reply.json().get("error", {})
        is_theirs = 400 <= reply.status_code < 500 and error.get("message") and error.get("type")
        has_code = reply.json().get("type") == "error" or isinstance(error.get("code"), str)
        if not (is_theirs and has_code):
            wrong.append((path, kind, body[:200], reply.status_code, reply.text[:200]))
    assert not wrong, wrong
    assert (await client.get("/health")).status_code == 200
