"""How uvicorn serves the application: with a command line's settings, and with those of tests alike."""

import asyncio
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from nalar.server.config import ServerConfig
from nalar.server.http.replies import STUCK

_IDLE_S = 75
"""How long a connection without a request is kept."""
_HEAD_S = 30.0
"""What a head gets to come in, from the start of a connection or its own: uvicorn alone would wait for ever."""
_MOST_HEAD_BYTES = 65_536
_MOST_AHEAD = 16
"""Requests that a connection may send while one of its own is being answered."""


class Bounded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Ends connections whose heads have no end: h11 does so by itself, httptools keeps all that comes.

    What is counted is what came since a head, a part of a body, or a request was complete, so trailers count too. The
    `on_` methods are those that httptools calls; without it nobody does.
    """

    _num_open_bytes = 0
    _answered: Any = None
    """The cycle that is being answered; `cycle` is that of the newest request, which may have been sent ahead."""

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
            self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._num_open_bytes += len(data)
        super().data_received(data)
        if hasattr(self, "parser") and self._num_open_bytes > _MOST_HEAD_BYTES:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self._num_open_bytes = 0
        super().on_headers_complete()
        if len(self.pipeline) > _MOST_AHEAD:
            raise ValueError("too many requests at once")  # httptools reads no further; 400

    def on_body(self, body: bytes) -> None:
        self._num_open_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_open_bytes = 0
        super().on_message_complete()


class Impatient(Bounded):
    """Closes connections that never ask, that begin to and do not go on, and that do not read what they asked for."""

    _silent: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, send_timeout_s: float | None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._send_timeout_s = send_timeout_s
        self._unsent: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Whoever writes waits as soon as the system takes no more, and from then on the reader is watched.
        transport.set_write_buffer_limits(high=0)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_asked and self._silent is not None:
            self._silent.cancel()
            self._silent = None
        elif not self._is_asked and self._silent is None:  # a part of the next head
            self._wait_for_head()

    @property
    def _is_asked(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._silent = asyncio.get_running_loop().call_later(_HEAD_S, self._close_silent)

    def _close_silent(self) -> None:
        if not self._is_asked and not self.transport.is_closing():
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self, last: int | None = None) -> None:
        """Cut the connection off if nothing of what waits is gone by the next look. last: bytes at the last one."""
        waits = self.transport.get_write_buffer_size()
        if last is not None and waits >= last:
            (self._answered or self.cycle).scope[STUCK] = True
            self.transport.abort()
        elif self._send_timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._unsent = loop.call_later(self._send_timeout_s, self._watch, waits)

    def _unwatch(self) -> None:
        if self._unsent is not None:
            self._unsent.cancel()
            self._unsent = None


def server_of(app: FastAPI, config: ServerConfig) -> uvicorn.Server:
    """Told to stop it takes nothing more, and gives what is under way `drain_s` to end in."""
    settings = uvicorn.Config(
        app,
        http=partial(Impatient, send_timeout_s=config.send_timeout_s),  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=round(config.drain_s),
        server_header=False,
    )
    return uvicorn.Server(settings)
