"""How uvicorn serves the application: with a command line's settings, and with those of tests alike."""

import socket

import uvicorn
from fastapi import FastAPI

from nalar.config import UserError
from nalar.server.config import ServerConfig

_BACKLOG = 2048
_IDLE_S = 75
"""How long a connection without a request is kept."""


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
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=round(config.drain_s),
        server_header=False,
    )
    return uvicorn.Server(settings)
