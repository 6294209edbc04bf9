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
"""What a head gets to come in, from the start of a connection or its own: uvicorn alone would wait for ever."""


class Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Closes connections that never ask, or begin to and do not go on."""

    _silent: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
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
