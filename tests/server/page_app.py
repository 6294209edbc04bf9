"""A small server that speaks the wire as the real one does, for tests of the page: scripted answers, no model."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from nalar.server import pages

MODEL = "r1-cpu"
KEY = "nk-right"
PIECE_CHARS = 6
THOUGHT = (
    "The equation is 3x + 7 = 22. Take 7 from both sides: 3x = 15. Divide by 3: x = 5. "
    "Check: 3·5 + 7 = 22, which holds.\n\nSo the answer is 5; I will show the steps."
)
ANSWER = r"""Take 7 from both sides, then divide by 3:

$$
\begin{aligned} 3x + 7 &= 22 \\ 3x &= 15 \\ x &= \frac{15}{3} = 5 \end{aligned}
$$

1. **Check** by putting it in: \(3 \cdot 5 + 7 = 22\).
2. In Python:

```python
def solve(a: int, b: int, c: int) -> float:
    return (c - b) / a  # of ax + b = c
```

| step | equation |
|:-----|---------:|
| 0 | $3x + 7 = 22$ |
| 1 | $3x = 15$ |

The answer is $\boxed{5}$.
"""


class Script:
    """What the server does next, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.refusals: list[Response] = []
        self.thought = THOUGHT
        self.pause_s = 0.0
        self.wants_key = False
        self.ended: list[str] = []


def refusal(status: int, code: str, **headers: str) -> Response:
    error = {"message": "no", "type": "error", "param": None, "code": code}
    return JSONResponse({"error": error}, status, headers)


def fake_app(script: Script, runs: Path | None = None) -> FastAPI:
    app = FastAPI()

    async def authorize(request: Request) -> None:
        if script.wants_key and request.headers.get("authorization") != f"Bearer {KEY}":
            raise HTTPException(401)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, "invalid_api_key")

    @app.get("/v1/models")
    async def models(request: Request) -> Any:
        await authorize(request)
        return {"object": "list", "data": [{"id": MODEL, "object": "model"}, {"id": "tiny"}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        await authorize(request)
        body = await request.json()
        script.asked.append(body)
        if script.refusals:
            return script.refusals.pop(0)
        return StreamingResponse(_events(script, body), media_type="text/event-stream")

    app.include_router(pages.router(authorize=authorize, runs=runs))
    return app


async def _events(script: Script, body: dict[str, Any]) -> AsyncIterator[bytes]:
    def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return (
            b"data: " + json.dumps({"choices": [choice], "usage": None, **more}).encode() + b"\n\n"
        )

    thinks = body.get("thinking", {}).get("type") != "disabled"
    wants_tool = bool(body.get("tools")) and body["messages"][-1]["role"] != "tool"
    try:
        yield event({"role": "assistant", "content": ""})
        for piece in (_pieces(script.thought) or [""]) if thinks else ():
            await asyncio.sleep(script.pause_s)
            yield event({"reasoning_content": piece})
        if wants_tool:
            call = {"index": 0, "id": "c1", "type": "function"}
            yield event(
                {"tool_calls": [{**call, "function": {"name": "calculator", "arguments": ""}}]}
            )
            for part in ('{"expression"', ': "(22-7)/3"}'):
                yield event({"tool_calls": [{"index": 0, "function": {"arguments": part}}]})
        for piece in () if wants_tool else _pieces(ANSWER):
            await asyncio.sleep(script.pause_s)
            yield event({"content": piece})
        yield event({}, "tool_calls" if wants_tool else "stop")
        yield b"data: " + json.dumps({"choices": [], "usage": _usage(thinks)}).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"
        script.ended.append("whole")
    except asyncio.CancelledError:
        script.ended.append("cancelled")
        raise


def _usage(thinks: bool) -> dict[str, Any]:
    return {
        "prompt_tokens": 1312,
        "completion_tokens": 530 if thinks else 118,
        "total_tokens": 1842,
        "prompt_tokens_details": {"cached_tokens": 1024},
        "completion_tokens_details": {"reasoning_tokens": 412 if thinks else 0},
        "cost": 0.00149 if thinks else 0.00042,
    }


def _pieces(text: str) -> list[str]:
    return [text[i : i + PIECE_CHARS] for i in range(0, len(text), PIECE_CHARS)]


@contextmanager
def served(app: FastAPI, *, drain: bool = False) -> Any:
    """The app on a free port of 127.0.0.1, in a thread of its own; gives its address.

    drain: it starts and ends as a server does, with what the app does then.
    """
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", lifespan="on" if drain else "off")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = not drain
        thread.join(timeout=20)
        listener.close()
