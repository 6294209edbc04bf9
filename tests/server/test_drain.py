"""The end of a server: what is under way is finished, or broken off in time; nothing is left running."""

import json
import os
import time

import httpx
import pytest
from tests.server.serving import serving

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


def test_a_killed_server_takes_its_engine_along(model_folder):
    with serving(model_folder) as server:
        assert is_alive(server.document["process_id"])
        server.process.kill()
        assert gone(server.document["process_id"])
