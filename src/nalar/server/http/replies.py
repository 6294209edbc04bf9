"""Replies that notice when their reader leaves: a whole one, and a stream of events."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from nalar.server.ask import Piece
from nalar.server.http.job import CLIENT_GONE, Job

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
STUCK = "nalar.reader_is_stuck"
"""In a request's scope: its connection was cut since nobody read from it."""
_MARK = "\0"
"""Stands for a text; it is in no name and no id."""
_STRING = json.encoder.encode_basestring
"""A text as `_ENCODE` writes it."""
_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def event(document: Mapping[str, Any], name: str | None = None) -> bytes:
    """One server-sent event. name: as Anthropic's and the Responses API have it."""
    data = _ENCODE(document)
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data}\n\n".encode()


class PlainTexts:
    """Events of pieces that differ in nothing but their text: what stands around it is encoded once.

    make: the document of a piece, in which its text stands as it is."""

    def __init__(self, make: Callable[[Piece], Mapping[str, Any]]) -> None:
        self._make = make
        self._around: dict[tuple[int, str, int], list[bytes]] = {}
        """Of each choice, kind and call."""

    def event(self, piece: Piece) -> bytes:
        key = piece.choice, piece.kind, piece.call
        around = self._around.get(key)
        if around is None:
            document = self._make(Piece(piece.choice, piece.kind, _MARK, piece.call))
            around = self._around[key] = event(document).split(_STRING(_MARK).encode())
        return _STRING(piece.text).encode().join(around)


async def whole(
    request: Request, job: Job, write: Callable[[Job], Awaitable[dict[str, Any]]]
) -> Response:
    """A reply that is sent at its end; its work ends with its reader."""
    async with job:
        work = asyncio.ensure_future(write(job))
        gone = asyncio.ensure_future(until_gone(request.receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return JSONResponse(work.result(), headers=job.headers)
            return Response(status_code=CLIENT_GONE)
        finally:
            await _end(work, gone)


class EventStream(Response):
    """Sends events as they come.

    The head goes out with the first of them, so that an error before it is an error of HTTP, or once `keep_alive_s` has
    passed in silence; from then on silence is filled with comments. on_error: the last event, where it breaks.
    """

    def __init__(
        self,
        job: Job,
        events: Callable[[Job], AsyncGenerator[bytes]],
        *,
        keep_alive_s: float,
        on_error: Callable[[Exception], bytes],
    ) -> None:
        super().__init__(media_type="text/event-stream")
        self.headers.update(job.headers)
        self.headers["Cache-Control"] = "no-cache"
        self.headers["X-Accel-Buffering"] = "no"
        del self.headers["content-length"]
        self._job, self._events, self._keep_alive_s = job, events, keep_alive_s
        self._on_error = on_error
        self._is_begun = False
        self._last_s = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            await send(message)
            if scope.get(STUCK):  # what is written now goes nowhere
                await asyncio.Event().wait()

        async with self._job:
            tasks = [
                asyncio.ensure_future(self._pump(sent)),
                asyncio.ensure_future(until_gone(receive)),
                asyncio.ensure_future(self._keep_alive(sent)),
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if tasks[0].done():
                    tasks[0].result()
                elif scope.get(STUCK):
                    self._job.reader_is_stuck()
            finally:
                await _end(*tasks)

    async def _pump(self, send: Send) -> None:
        try:
            async with aclosing(self._events(self._job)) as events:
                async for one in events:
                    await self._send(send, one)
        except Exception as error:
            self._job.failed(error)
            if not self._is_begun:
                raise
            await self._send(send, self._on_error(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, body: bytes) -> None:
        self._last_s = time.monotonic()
        if not self._is_begun:
            self._is_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            left = self._last_s + self._keep_alive_s - time.monotonic()
            if left <= 0:
                await self._send(send, KEEP_ALIVE)
            await asyncio.sleep(max(left, self._keep_alive_s / 4))


async def until_gone(receive: Receive) -> None:
    """Once the body was read: until its sender has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
