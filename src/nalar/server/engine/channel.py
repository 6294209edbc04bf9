"""The worker's end of the socket. Imports no torch."""

import json
import math
import select
import socket
from collections.abc import Sequence
from typing import Any, Protocol

from nalar.server.engine.messages import encode_line

_CHUNK = 1 << 18


class HasFd(Protocol):
    def fileno(self) -> int: ...


class Channel:
    """JSON lines over a socket that never makes the engine wait: what cannot be sent now is sent later."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock, self._read, self._unsent = sock, bytearray(), memoryview(b"")

    def lines(
        self, *, wait: bool, others: Sequence[HasFd] = (), wait_s: float | None = None
    ) -> list[Any]:
        """What has come. With `wait` it sleeps until something does, or until unsent bytes can leave.

        others: what ends the sleep too, and so does the end of `wait_s`. EOFError once nobody is there.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        for other in others:
            poll.register(other, select.POLLIN)
        wait_ms = None if wait_s is None else math.ceil(wait_s * 1000)
        came = dict(poll.poll(wait_ms if wait else 0))
        while came.get(self._sock.fileno(), 0) & ~select.POLLOUT:
            try:
                chunk = self._sock.recv(_CHUNK)
            except BlockingIOError:
                break
            if not chunk:
                raise EOFError
            self._read += chunk
        *whole, rest = self._read.split(b"\n")
        self._read = bytearray(rest)
        return [json.loads(line) for line in whole]

    def flush(self) -> bool:
        """Send what the socket takes; whether all that was given to `send` has left."""
        while self._unsent:
            try:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
            except BlockingIOError:
                return False
        return True

    def send(self, document: dict[str, Any]) -> None:
        """Only where `flush` says that all has left. It leaves with the next `flush`."""
        self._unsent = memoryview(encode_line(document))

    def finish(self, document: dict[str, Any]) -> None:
        """Send a last line, however long that takes."""
        self._sock.setblocking(True)
        self._sock.sendall(bytes(self._unsent) + encode_line(document))
