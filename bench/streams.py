"""Clients of a server that cost as little as can be: a socket each, bytes counted, nothing parsed that need not be.

What is measured on a machine of two cores is the server, and not who asks it.
"""

import asyncio
import json
import re
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"
_ID = re.compile(rb'"id":"([^"]+)"')
_TOKENS = re.compile(rb'"completion_tokens":(\d+)')


@dataclass(frozen=True)
class Reply:
    """What came of one request."""

    status: int
    """0: the connection broke before there was one."""
    request_id: str = ""
    num_events: int = 0
    """Lines that begin with `data: `, [DONE] left out; 0 of a whole reply."""
    num_tokens: int = 0
    """Completion tokens, where the reply says so."""
    is_complete: bool = False
    """Whether its last byte came."""
    has_retry_after: bool = False


def ask_streams(port: int, bodies: Sequence[dict[str, Any]], nap_s: float = 0.005) -> list[Reply]:
    """All at once, to their ends. No tasks and no wake-up for each event: it looks, takes what has come, and naps, so
    that the cores are the server's. What is counted is what the server wrote, however much of it is read at a time."""
    came, waiting = [bytearray() for _ in bodies], selectors.DefaultSelector()
    for body, buffer in zip(bodies, came, strict=True):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(_request(body, CHAT))
        waiting.register(sock, selectors.EVENT_READ, buffer)
    while waiting.get_map():
        for key, _ in waiting.select():
            sock = key.fileobj  # type: ignore[assignment]
            if chunk := sock.recv(2**18):
                key.data.extend(chunk)
            else:
                waiting.unregister(sock)
                sock.close()
        time.sleep(nap_s)
    return [_read(bytes(buffer), is_stream=True) for buffer in came]


def _request(body: dict[str, Any], path: str) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


async def ask(port: int, body: dict[str, Any], path: str = CHAT, *, leave: bool = False) -> Reply:
    """leave: go away with the first event."""
    writer: asyncio.StreamWriter | None = None
    came = bytearray()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        writer.write(_request(body, path))
        while chunk := await reader.read(2**18):
            came += chunk
            if leave and b"data: " in came:
                break
    except OSError:
        pass
    finally:
        if writer is not None:
            writer.close()
    return _read(bytes(came), is_stream=bool(body.get("stream")))


def _read(came: bytes, *, is_stream: bool) -> Reply:
    if not came.startswith(b"HTTP/1.1 "):
        return Reply(0)
    head, _, rest = came.partition(b"\r\n\r\n")
    found, tokens = _ID.search(rest), _TOKENS.findall(rest)
    if b"transfer-encoding: chunked" in head.lower():
        is_complete = rest.endswith(b"0\r\n\r\n")
    else:
        length = re.search(rb"content-length: (\d+)", head.lower())
        is_complete = length is not None and len(rest) == int(length[1])
    if is_stream and came.startswith(b"HTTP/1.1 200"):
        is_complete = is_complete and b"data: [DONE]" in rest
    return Reply(
        status=int(came[9:12]),
        request_id=found[1].decode() if found else "",
        num_events=max(rest.count(b"data: ") - rest.count(b"data: [DONE]"), 0) if is_stream else 0,
        num_tokens=int(tokens[-1]) if tokens else 0,
        is_complete=is_complete,
        has_retry_after=b"\r\nretry-after: " in head.lower(),
    )


async def ask_all(
    port: int, bodies: Sequence[dict[str, Any]], *, at_once: int | None = None, path: str = CHAT
) -> list[Reply]:
    """In the order of the bodies. at_once: connections at most; None: all."""
    gate = asyncio.Semaphore(at_once or max(len(bodies), 1))

    async def one(body: dict[str, Any]) -> Reply:
        async with gate:
            return await ask(port, body, path)

    return list(await asyncio.gather(*map(one, bodies)))


async def get(port: int, path: str) -> str:
    """The text of a page."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text
