"""A server whose engine draws nothing: text at a set pace, so that what is measured is HTTP and all that leads to it.

    python bench/standin.py serve FOLDER STEPS_PER_S

prints its port and the ids of its processes, and serves until SIGTERM: the real application on a real socket, the real
pipe, and a process in the engine's place that gives every open request four tokens of text a step, as an engine on a
CPU does. STEPS_PER_S: 0 is as many as the pipe takes.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

RUN = 4
"""Tokens of a stream that come at once."""


def engine(steps_per_s: float, number: int) -> None:
    from nalar.server.engine.channel import Channel
    from nalar.server.engine.messages import Event, event_json

    channel = Channel(socket.socket(fileno=number))
    while not channel.lines(wait=True):
        pass
    ready = {"max_model_len": 1 << 20, "weight_version": "none"}
    channel.send({"ready": ready})
    left: dict[int, int] = {}
    may_go = True
    due = time.perf_counter()
    while True:
        replies: list[dict[str, Any]] = []
        for line in channel.lines(wait=not left or not (steps_per_s or may_go)):
            if line["op"] == "stop":
                return
            if line["op"] == "ask":
                left[line["id"]] = line["params"]["max_tokens"]
            elif line["op"] == "abort":
                left.pop(line["id"], None)
            elif line["op"] == "stats":
                stats = {"running": len(left), "waiting": 0}
                replies.append({"stats": stats, "id": line["id"]})
            else:
                may_go = True
        if not steps_per_s and not replies and not may_go:
            continue
        if steps_per_s:
            due = max(due + 1 / steps_per_s, time.perf_counter() - 0.1)
            time.sleep(max(0.0, due - time.perf_counter()))
        events = []
        if channel.flush():
            for asked, tokens in list(left.items()):
                size = min(RUN, tokens)
                left[asked] -= size
                reason = None if left[asked] else "length"
                if reason:
                    del left[asked]
                ids = tuple(70 + (tokens + i) % 20 for i in range(size))
                event = Event(0, ids, (), finish_reason=reason)  # type: ignore[arg-type]
                events.append(event_json(asked, event))
            if events or replies:
                channel.send({"events": events, "replies": replies})
                may_go = not events
                channel.flush()


def _lockstep() -> type:
    from nalar.server.engine.link import Link

    class Lockstep(Link):
        """Lets the engine take its next step once what came of this one has been sent."""

        def _hear(self, message: dict[str, Any]) -> None:
            super()._hear(message)
            if message.get("events"):
                self._after(8)

        def _after(self, rounds: int) -> None:
            if rounds:
                asyncio.get_running_loop().call_soon(self._after, rounds - 1)
            else:
                self._send({"op": "go", "id": 0})

    return Lockstep


async def serve(folder: Path, steps_per_s: str) -> None:
    from nalar.engine.config import EngineConfig
    from nalar.server.config import ServerConfig, WorkerConfig
    from nalar.server.http.app import create_app
    from nalar.server.http.listening import listen, server_of

    config = ServerConfig(
        port=0, served_model_names=("m",), worker=WorkerConfig(folder=folder, engine=EngineConfig(max_model_len=8192)), drain_s=1.0
    )
    listening = listen("127.0.0.1", 0)
    link = _lockstep()(config.worker, (sys.executable, __file__, "engine", steps_per_s))
    server = server_of(create_app(config, link), config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while link.state == "loading":
        await asyncio.sleep(0.05)
    print(json.dumps([listening.getsockname()[1], os.getpid(), link.process_id]), flush=True)
    await serving


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            engine(float(sys.argv[2]), int(sys.argv[3]))
        except (EOFError, ConnectionError):
            pass
    elif profile := os.environ.get("PROFILE"):
        import cProfile

        p = cProfile.Profile(time.process_time)
        signal.signal(signal.SIGTERM, lambda *_: None)
        p.enable()
        if os.environ.get("UV"):
            import uvloop
            uvloop.run(serve(Path(sys.argv[2]), sys.argv[3]))
        else:
            asyncio.run(serve(Path(sys.argv[2]), sys.argv[3]))
        p.disable()
        p.dump_stats(profile)
    else:
        signal.signal(signal.SIGTERM, lambda *_: None)
        if os.environ.get("UV"):
            import uvloop
            uvloop.run(serve(Path(sys.argv[2]), sys.argv[3]))
        else:
            asyncio.run(serve(Path(sys.argv[2]), sys.argv[3]))
