"""The server's end of the engine's process: starts it, asks it, and notices when it dies. Imports no torch."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol

from nalar.config import UserError
from nalar.server.config import WorkerConfig
from nalar.server.engine.messages import (
    IDLE,
    EngineError,
    EngineFacts,
    EngineRequest,
    EngineStats,
    Event,
    encode_line,
    read_error,
    read_event,
    request_json,
)

BACKOFF_S = 1.0
"""Between a death and the next start."""
STEADY_S = 60.0
"""A process that dies sooner after it was ready, for the second time in a row, is not started again."""
STOP_S = 5.0
"""What a process gets to end in when it is told to."""
_MAX_LINE_BYTES = 1 << 28
_PACKAGES = Path(__file__).parents[3]
_log = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed", "stopped"]


class Unavailable(Exception):
    """The engine takes no requests: it loads, or has failed for good."""


class Engine(Protocol):
    """Where requests go: a `Link`, or what a test puts in its place."""

    state: State
    facts: EngineFacts | None
    """None: not loaded yet."""

    async def ready(self) -> EngineFacts: ...
    def stream(self, request: EngineRequest) -> AsyncGenerator[Event]: ...
    async def stats(self) -> EngineStats: ...
    async def close(self) -> None: ...


class _Mailbox:
    """What came for one request and was not taken yet. Events of a choice are joined, so it holds no more than what the
    request may draw, however slow its reader is."""

    def __init__(self) -> None:
        self._events: dict[int, Event] = {}
        self._error: Exception | None = None
        self._came = asyncio.Event()

    def put(self, event: Event) -> None:
        held = self._events.get(event.choice)
        self._events[event.choice] = event if held is None else held.then(event)
        self._came.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._came.set()

    async def take(self) -> Sequence[Event]:
        """At least one; raises what the request failed by once all that came before is taken."""
        await self._came.wait()
        self._came.clear()
        events, self._events = list(self._events.values()), {}
        if self._error is not None:
            self._came.set()
            if not events:
                raise self._error
        return events


class Link:
    """One engine in a process of its own. For one event loop."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self.state: State = "loading"
        self.process_id: int | None = None
        self.facts: EngineFacts | None = None
        self._error: Exception | None = None
        self._settled = asyncio.Event()
        """Ready, failed or stopped: `ready` has an answer."""
        self._numbers = count()
        self._open: dict[int, _Mailbox] = {}
        self._asked: dict[int, asyncio.Future[EngineStats]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to load. Call it once, inside the loop."""
        self._task = asyncio.create_task(self._supervise())

    async def ready(self) -> EngineFacts:
        """Once the model is loaded; UserError where it cannot be, EngineError where its process died of it."""
        await self._settled.wait()
        if self.facts is None or self.state != "ready":
            raise self._error or Unavailable("the engine has stopped")
        return self.facts

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Event]:
        """What comes of each choice, until all are finished. Whoever leaves early (`aclose`) ends the work.

        Unavailable, UserError for what the engine refuses, EngineError where it died.
        """
        if self.state != "ready":
            raise Unavailable(f"the engine is {self.state}")
        number, box, left = next(self._numbers), _Mailbox(), request.params.n
        self._open[number] = box
        try:
            self._send(request_json(number, request))
            while left:
                for event in await box.take():
                    left -= event.finish_reason is not None
                    yield event
        finally:
            if self._open.pop(number, None) is not None and left:
                self._send({"op": "abort", "id": number})

    async def stats(self) -> EngineStats:
        """Zeros where no engine is there."""
        if self.state != "ready":
            return IDLE
        number = next(self._numbers)
        future: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._send({"op": "stats", "id": number})
        return await future

    async def close(self) -> None:
        """End the process, and every request that is open."""
        self.state = "stopped"
        self._send({"op": "stop"})
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(self._task, STOP_S)
        self._settled.set()

    def _send(self, document: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode_line(document))

    async def _supervise(self) -> None:
        """Start the process, and once more after each death, unless it dies at once."""
        is_second = False
        while True:
            began = time.monotonic()
            reason = await self._life()
            self._end_all(EngineError(reason))
            if self.state == "stopped":
                return
            is_steady = self.facts is not None and time.monotonic() - began >= STEADY_S
            if self._error is not None or (is_second and not is_steady):
                self._error = self._error or EngineError(reason)
                self.state = "failed"
                self._settled.set()
                _log.error("engine failed: %s", self._error)
                return
            _log.error("engine restarts: %s", reason)
            is_second, self.state = True, "loading"
            self._settled.clear()
            await asyncio.sleep(BACKOFF_S)
            if not self._is_loading:  # told to stop meanwhile
                return

    @property
    def _is_loading(self) -> bool:
        return self.state == "loading"

    async def _life(self) -> str:
        """From the start of a process to its end; why it ended."""
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(filter(None, [str(_PACKAGES), os.environ.get("PYTHONPATH", "")]))
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "nalar.server.engine.worker", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,
            )
        self.process_id = process.pid
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=_MAX_LINE_BYTES)
        try:
            self._writer.write(self._config.model_dump_json().encode() + b"\n")
            while line := await reader.readline():
                self._hear(json.loads(line))
            code = await process.wait()
            return f"its process ended with exit status {code}"
        except (ConnectionError, ValueError) as error:  # ValueError: a line that is too long
            return f"its process went away: {error}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            self._writer.close()
            self._writer, self.process_id = None, None

    def _hear(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.facts = EngineFacts(**message["ready"])
            if self.state == "loading":
                self.state = "ready"
            self._settled.set()
            return
        if "failed" in message:
            error = read_error(message["failed"])
            # A folder that is refused stays so; another kind of death may be of the moment.
            self._error = error if isinstance(error, UserError) else None
            return
        for fields in message["events"]:
            number, event = read_event(fields)
            if (box := self._open.get(number)) is not None:
                box.put(event)
        for reply in message["replies"]:
            if "stats" in reply:
                future = self._asked.pop(reply["id"])
                if not future.done():
                    future.set_result(EngineStats(**reply["stats"]))
            elif (box := self._open.pop(reply["id"], None)) is not None:
                box.fail(read_error(reply["error"]))

    def _end_all(self, error: EngineError) -> None:
        boxes, self._open = self._open, {}
        for box in boxes.values():
            box.fail(error)
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_result(IDLE)
