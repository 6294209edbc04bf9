"""Where a server listens. Imports neither torch nor FastAPI: a port that is taken is to be told at once."""

import socket

from nalar.config import UserError

_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """UserError where the address is taken, or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise UserError(
            at=f"--host {host} --port {port}",
            got=getattr(error, "strerror", None) or str(error),
            want="an address of this machine, and a port that is free",
            hint="--port 0 takes any",
        ) from error


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
