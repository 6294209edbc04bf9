"""The end of a server: what is under way is finished, or broken off in time; nothing is left running."""

import json
import os
import signal
import sqlite3
import threading
import time

import httpx
import pytest
from tests.server.serving import serving

from nalar.server.http.address import listen, url_of
from nalar.server.http.app import create_app
from nalar.server.http.listening import server_of

BODY = {"messages": [{"role": "user", "content": "say 12"}], "stream": True, "seed": 1}


def is_alive(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def gone(process_id):
    deadline = time.monotonic() + 10
    while is_alive(process_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(process_id)


def test_told_to_stop_it_lets_a_stream_end(server_config, scripted, tokenizer):
    ids = [*tokenizer.encode("5" * 60), tokenizer.end_id]
    link = scripted([ids], pause_s=0.005)
    listening = listen("127.0.0.1", 0)
    server = server_of(create_app(server_config, link), server_config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    url = url_of(listening)
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=BODY, timeout=60) as reply:
        lines = reply.iter_lines()
        next(lines)
        server.handle_exit(signal.SIGTERM, None)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    thread.join(30)
    assert not thread.is_alive() and link.state == "stopped" and link.aborted == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_what_does_not_end_in_time_is_broken_off_and_counted(
    server_config, scripted, tokenizer, tmp_path
):
    config = server_config.model_copy(update={"drain_s": 1.0, "ledger": tmp_path / "ledger.db"})
    link = scripted([[*tokenizer.encode("5" * 200)]], pause_s=0.1)
    listening = listen("127.0.0.1", 0)
    server = server_of(create_app(config, link), config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    url = f"{url_of(listening)}/v1/chat/completions"
    with httpx.stream("POST", url, json=BODY, timeout=60) as reply:
        lines = reply.iter_lines()
        next(lines)
        server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    thread.join(30)
    assert not thread.is_alive() and link.aborted == [0]
    with sqlite3.connect(tmp_path / "ledger.db") as ledger:
        ((status, tokens),) = ledger.execute("SELECT status, completion_tokens FROM requests")
    assert status == 503 and tokens > 0


@pytest.mark.slow  # most of it is spent in starting, as below
def test_sigterm_lets_a_stream_end_and_takes_no_other(model_folder):
    with serving(model_folder, "--served-model-name", "tiny") as server:
        body = BODY | {"max_tokens": 300, "min_tokens": 300}
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=body, timeout=60
        ) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.terminate()
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert (
            json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        )
        assert server.process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")
        assert gone(server.document["process_id"])


@pytest.mark.slow
def test_a_killed_server_takes_its_engine_along(model_folder):
    with serving(model_folder) as server:
        assert is_alive(server.document["process_id"])
        server.process.kill()
        assert gone(server.document["process_id"])
