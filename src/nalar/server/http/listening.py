"""How uvicorn serves the application: with a command line's settings, and with those of tests alike."""

import asyncio
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from nalar.config import UserError
from nalar.server.config import ServerConfig

_BACKLOG = 2048
_IDLE_S = 75
"""How long a connection without a request is kept."""
_HEAD_S = 30.0
"""What a new connection gets to say its first request's head in: uvicorn alone would wait for ever."""
_MOST_HEAD_BYTES = 65_536
_MOST_AHEAD = 16
"""Requests that a connection may send while one of its own is being answered."""


class Bounded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Ends connections whose heads have no end: h11 does so by itself, httptools keeps all that comes.

    What is counted is what came since a head, a part of a body, or a request was complete, so trailers count too. The
    `on_` methods are those that httptools calls; without it nobody does.
    """

    _num_open_bytes = 0

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
    """Closes connections that never ask."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(_HEAD_S, self._close_silent)

    def _close_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """UserError where the address is taken, or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UserError(
            at=f"--host {host} --port {port}",
            got=error.strerror or str(error),
            want="an address of this machine, and a port that is free",
            hint="--port 0 takes any",
        ) from error


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def server_of(app: FastAPI, config: ServerConfig) -> uvicorn.Server:
    """Told to stop it takes nothing more, and gives what is under way `drain_s` to end in."""
    settings = uvicorn.Config(
        app,
        http=Impatient,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=round(config.drain_s),
        server_header=False,
    )
    return uvicorn.Server(settings)
