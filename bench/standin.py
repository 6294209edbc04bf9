"""A server whose engine draws nothing, so that what is measured is HTTP and all that leads to it.

    python bench/standin.py serve FOLDER STEPS_PER_S

The application on a socket, the dialect of the folder, and behind the pipe a process that gives every open request four
tokens of text a step, as an engine on a CPU does. It prints its port and its process's id. STEPS_PER_S: 0 is in step
with the server: the next is taken once what came of the last one was sent, so no events are joined. Else what does not
fit the pipe is not drawn.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from nalar.engine.config import EngineConfig
from nalar.server.config import ServerConfig, WorkerConfig
from nalar.server.engine.channel import Channel
from nalar.server.engine.link import Link
from nalar.server.engine.messages import Event, event_json
from nalar.server.http.address import listen
from nalar.server.http.app import create_app
from nalar.server.http.listening import server_of

RUN = 4
"""Tokens of a stream that come at once."""
FIRST_ID, NUM_IDS = 70, 20
"""Of the tokens that it says."""
LONGEST = 8192
ROUNDS = 8
"""Of the event loop, until what a message brought has surely been sent."""


class StandIn:
    """The process in the engine's place."""

    def __init__(self, channel: Channel, steps_per_s: int) -> None:
        self._channel, self._step_s = channel, 1 / steps_per_s if steps_per_s else None
        self._left: dict[int, int] = {}
        """Tokens to come, by the number of the request."""
        self._replies: list[dict[str, Any]] = []
        self._may_go = True

    def run(self) -> None:
        """Until told to stop."""
        while not self._channel.lines(wait=True):  # the config
            pass
        self._channel.send({"ready": {"max_model_len": LONGEST, "weight_version": "none"}})
        while True:
            for line in self._channel.lines(wait=not (self._left and self._may_go)):
                if line["op"] == "stop":
                    return
                self._hear(line)
            if self._step_s is not None:
                time.sleep(self._step_s)
            self._say()

    def _hear(self, line: dict[str, Any]) -> None:
        number = line.get("id", 0)
        match line["op"]:
            case "ask":
                self._left[number] = line["params"]["max_tokens"]
            case "abort":
                self._left.pop(number, None)
            case "stats":
                stats = {"running": len(self._left), "waiting": 0, "cache_usage_frac": 0.0}
                self._replies.append({"id": number, "stats": stats})
            case "go":
                self._may_go = True

    def _say(self) -> None:
        if not self._channel.flush():
            return
        events = [self._event(number) for number in list(self._left)] if self._may_go else []
        if events or self._replies:
            self._may_go = self._may_go and not (events and self._step_s is None)
            self._channel.send({"events": events, "replies": self._replies})
            self._replies = []
            self._channel.flush()

    def _event(self, number: int) -> list[Any]:
        left = self._left[number]
        ids = tuple(FIRST_ID + (left - i) % NUM_IDS for i in range(min(RUN, left)))
        self._left[number] -= len(ids)
        if not self._left[number]:
            del self._left[number]
            return event_json(number, Event(0, ids, (), finish_reason="length"))
        return event_json(number, Event(0, ids, ()))


class InStep(Link):
    """Lets the process take its next step once what came of the last one has been sent."""

    def _hear(self, message: dict[str, Any]) -> None:
        super()._hear(message)
        if message.get("events"):
            self._after(ROUNDS)

    def _after(self, rounds: int) -> None:
        if rounds:
            asyncio.get_running_loop().call_soon(self._after, rounds - 1)
        else:
            self._send({"op": "go"})


async def serve(folder: Path, steps_per_s: str) -> None:
    worker = WorkerConfig(folder=folder, engine=EngineConfig(max_model_len=LONGEST))
    config = ServerConfig(port=0, served_model_names=("m",), worker=worker, drain_s=1.0)
    listening = listen("127.0.0.1", 0)
    link = InStep(worker, (sys.executable, __file__, "engine", steps_per_s))
    server = server_of(create_app(config, link), config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while link.state == "loading":
        await asyncio.sleep(0.05)
    print(json.dumps([listening.getsockname()[1], os.getpid()]), flush=True)
    await serving


if __name__ == "__main__":
    _, role, *rest = sys.argv
    if role == "engine":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with contextlib.suppress(EOFError, ConnectionError):
            StandIn(Channel(socket.socket(fileno=int(rest[1]))), int(rest[0])).run()
    else:
        # uvicorn ends in good order and then raises the signal again
        signal.signal(signal.SIGTERM, lambda *_: None)
        asyncio.run(serve(Path(rest[0]), rest[1]))
