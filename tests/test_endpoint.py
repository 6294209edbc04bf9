"""The client of chat APIs against a small server on this machine that fails in every way it can."""

import gzip
import json
import socket
import time

import pytest

from nalar import endpoint
from nalar.config import ConfigError
from nalar.endpoint import Endpoint, EndpointConfig


def chat(text, **more):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def client(server, **settings):
    return Endpoint(EndpointConfig(base_url=server.url, model="m", **settings))


def said(text):
    return [{"role": "user", "content": text}]


def test_a_question_goes_out_as_the_api_has_it_and_its_reply_comes_back(chat_server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-1")
    server = chat_server(lambda body, nth: "Hello")
    reply = client(server, api_key_env="JUDGE_KEY").ask(said("Hi \ud800"), max_tokens=5)
    assert (reply.text, reply.finish_reason, reply.error) == ("Hello", "stop", None)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.tries) == (7, 2, 1)
    ((path, headers, body),) = server.seen
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret-1"
    assert body == {"model": "m", "messages": said("Hi \ud800"), "max_tokens": 5}


def test_without_a_key_none_is_sent_and_one_that_is_missing_is_refused(chat_server, monkeypatch):
    server = chat_server(lambda body, nth: "x")
    client(server).ask(said("q"))
    assert "Authorization" not in server.seen[0][1]
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY, which is not set"):
        client(server, api_key_env="NO_SUCH_KEY")


def test_replies_keep_the_order_of_questions_and_the_limit_of_those_under_way(chat_server):
    def plan(body, nth):
        time.sleep(0.03 * (nth % 3))
        return body["messages"][0]["content"] * 2

    server = chat_server(plan)
    replies = client(server, max_concurrency=4).ask_all([said(str(i)) for i in range(24)])
    assert [r.text for r in replies] == [str(i) * 2 for i in range(24)]
    assert 2 <= server.busiest <= 4
    assert client(server).ask_all([]) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_or_broken_server_is_asked_again(chat_server, status):
    server = chat_server(lambda body, nth: "at last" if nth == 3 else (status, {}, b"later"))
    reply = client(server, max_retries=2).ask(said("q"))
    assert (reply.text, reply.tries, reply.error) == ("at last", 3, None)


def test_tries_end_and_the_reason_is_told(chat_server):
    server = chat_server(lambda body, nth: (503, {"Retry-After": "86400"}, b"no\ncapacity"))
    reply = client(server, max_retries=2).ask(said("q"))
    assert (reply.text, reply.error, reply.tries) == ("", "status 503: no capacity", 3)
    assert len(server.seen) == 3 and not reply.timed_out


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_what_another_try_cannot_mend_is_not_tried_again(chat_server, status):
    server = chat_server(lambda body, nth: (status, {"Location": "/v1/elsewhere"}, b"no"))
    reply = client(server).ask(said("q"))
    assert reply.error == f"status {status}: no" and len(server.seen) == 1


def test_a_slow_server_is_a_timeout(chat_server):
    server = chat_server(lambda body, nth: time.sleep(5) or "late")
    start = time.monotonic()
    reply = client(server, timeout_s=0.2, max_retries=1).ask(said("q"))
    assert time.monotonic() - start < 4
    assert (reply.timed_out, reply.tries, reply.error) == (True, 2, "no reply within 0.2 s")


def test_a_server_that_drips_bytes_is_a_timeout_too(chat_server):
    """Each wait is short, all together are not: the limit is of the whole try."""

    def drip(write):
        for _ in range(100):
            write(b"x")
            time.sleep(0.05)

    server = chat_server(lambda body, nth: (200, {"Content-Length": "1000"}, drip))
    start = time.monotonic()
    reply = client(server, timeout_s=0.3, max_retries=0).ask(said("q"))
    assert reply.timed_out and time.monotonic() - start < 3


@pytest.mark.parametrize(
    "body",
    [b"", b"no json", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}']
    + [chat(None), chat(3), chat([{"text": "x"}]), b"\xff\xfe", b"[" * 100_000]
    + [b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "7"}}'],
)
def test_a_body_that_is_no_reply_is_an_error(chat_server, body):
    server = chat_server(lambda asked, nth: (200, {}, body))
    reply = client(server).ask(said("q"))
    assert reply.text == "" and reply.error.startswith("no chat completion") and reply.tries == 1


def test_a_reply_without_end_is_an_error(chat_server, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_REPLY_BYTES", 10_000)
    server = chat_server(lambda body, nth: "x" * 50_000)
    assert client(server).ask(said("q")).error == "more than 10000 bytes"


def test_a_server_that_is_not_there_is_an_error(chat_server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    config = EndpointConfig(base_url=url, model="m", max_retries=1)
    reply = Endpoint(config).ask(said("q"))
    assert reply.error.startswith("ConnectError") and reply.tries == 2


def test_the_key_stands_in_no_error_and_no_config(chat_server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-2")
    asked = client(
        chat_server(lambda body, nth: (500, {}, b"no")), api_key_env="JUDGE_KEY", max_retries=0
    )
    assert "secret-2" not in asked.config.model_dump_json() + asked.ask(said("q")).error


@pytest.mark.parametrize("body", [b"no such key: %s", b'{"error": "%s"}'])
@pytest.mark.parametrize("status", [200, 401])
def test_a_key_that_the_server_repeats_is_left_out(chat_server, monkeypatch, status, body):
    monkeypatch.setenv("JUDGE_KEY", "secret-3")
    server = chat_server(lambda asked, nth: (status, {}, body % b"secret-3"))
    told = client(server, api_key_env="JUDGE_KEY").ask(said("q")).error
    assert "secret-3" not in told and "[the key]" in told


@pytest.mark.parametrize("key", ["secret-4\n", "secret-4 ", "secret-4\xe9", "secret\r\n-4"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(ConfigError, match="JUDGE_KEY, which holds") as refused:
        Endpoint(EndpointConfig(base_url="http://127.0.0.1:9", model="m", api_key_env="JUDGE_KEY"))
    assert "secret" not in str(refused.value)


def test_a_reply_is_not_decompressed(chat_server):
    packed = gzip.compress(chat("x" * 1000))
    server = chat_server(lambda asked, nth: (200, {"Content-Encoding": "gzip"}, packed))
    assert client(server).ask(said("q")).error.startswith("no chat completion")
    assert server.seen[0][1]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a/v1", "http://", "http://u:p@a/v1", "http://a/v1?k=1"]
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url):
    with pytest.raises(ConfigError, match=r"endpoint\.base_url"):
        EndpointConfig(base_url=url, model="m")
