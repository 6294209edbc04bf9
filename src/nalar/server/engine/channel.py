"""The worker's end of the socket. Imports no torch."""

import json
import select
import socket
from typing import Any

from nalar.server.engine.messages import encode_line

_CHUNK = 1 << 18


class Channel:
    """JSON lines over a socket that never makes the engine wait: what cannot be sent now is sent later."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock, self._read, self._unsent = sock, bytearray(), memoryview(b"")

    def lines(self, *, wait: bool) -> list[Any]:
        """What has come. With `wait` it sleeps until something does, or until unsent bytes can leave.

        EOFError once nobody is there.
        """
        writers = [self._sock] if self._unsent else []
        readable, _, _ = select.select([self._sock], writers, [], None if wait else 0)
        while readable:
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
