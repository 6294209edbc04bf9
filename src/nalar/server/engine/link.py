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

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Between a death and the next start; each that comes soon after the one before doubles it."""
STEADY_S = 60.0
"""A process that dies sooner after it was ready died soon."""
RETRY_S = 2.0
"""When to ask again, at the soonest, for whoever asks too soon."""
WORKER = (sys.executable, "-P", "-m", "nalar.server.engine.worker")
PING_S = 5.0
"""Between questions to a process whether it is there, while it says nothing by itself."""
STATS_S = 2.0
"""What a process gets to say how it is; then the last that it said has to do."""
STOP_S = 5.0
"""What a process gets to end in when it is told to."""
_MAX_LINE_BYTES = 1 << 28
_LOUD_DEATHS = 3
"""So many in a row are for somebody to look at."""
_PACKAGES = Path(__file__).parents[3]
_log = logging.getLogger(__name__)

State = Literal["loading", "ready", "hung", "failed", "stopped"]


class Unavailable(Exception):
    """The engine takes no requests: it loads, is started again after a death, hangs, or has failed for good."""

    def __init__(self, reason: str, retry_after_s: float = RETRY_S) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Engine(Protocol):
    """Where requests go: a `Link`, or what a test puts in its place."""

    state: State
    facts: EngineFacts | None
    """None: not loaded yet."""

    async def ready(self) -> EngineFacts: ...
    def check(self) -> None: ...
    def stream(
        self, request: EngineRequest, unread: list[Event] | None = None
    ) -> AsyncGenerator[Event]: ...
    async def stats(self) -> EngineStats: ...
    async def close(self) -> None: ...


class _Mailbox:
    """What came for one request and was not taken yet. Events of a choice are joined, so it holds no more than what the
    request may draw, however slow its reader is."""

    def __init__(self) -> None:
        self._events: dict[int, Event] = {}
        self._error: Exception | None = None
        self._awaited: asyncio.Future[None] | None = None
        """Of a reader that waits."""

    def put(self, event: Event) -> None:
        held = self._events.get(event.choice)
        self._events[event.choice] = event if held is None else held.then(event)
        self._wake()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._wake()

    def left(self) -> list[Event]:
        """What nobody has taken, maybe nothing."""
        events, self._events = list(self._events.values()), {}
        return events

    async def take(self) -> list[Event]:
        """At least one; raises what the request failed by once all that came before is taken."""
        if not self._events and self._error is None:
            self._awaited = asyncio.get_running_loop().create_future()
            await self._awaited
        events = self.left()
        if not events and self._error is not None:
            raise self._error
        return events

    def _wake(self) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)


class Link:
    """One engine in a process of its own. For one event loop."""

    def __init__(self, config: WorkerConfig, command: Sequence[str] = WORKER) -> None:
        """command: of the process, but for the number of its socket; a bench puts another in its place."""
        self._config, self._command = config, command
        self.state: State = "loading"
        self.process_id: int | None = None
        self.facts: EngineFacts | None = None
        self._error: Exception | None = None
        """Why it cannot be loaded, in the words of the process that tried."""
        self._reason = ""
        """What the last process ended of, for everybody."""
        self._ready_s: float | None = None
        """Since when this process is ready, by time.monotonic."""
        self._next_s = 0.0
        """When the next one is started, by time.monotonic."""
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()
        """Ready, failed or stopped: `ready` has an answer."""
        self._numbers = count()
        self._open: dict[int, _Mailbox] = {}
        self._asked: dict[int, asyncio.Future[EngineStats]] = {}
        self._stats = IDLE
        """The last that is known."""
        self._silent_since_s: float | None = None
        """When it was asked what it has not answered, by time.monotonic."""
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._beats: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to load. Call it once, inside the loop."""
        self._task = asyncio.create_task(self._supervise())

    async def ready(self) -> EngineFacts:
        """Once the model is loaded; UserError where it cannot be, EngineError where its process died of it."""
        await self._settled.wait()
        if self.facts is None or self.state != "ready":
            raise self._error or Unavailable("the engine has stopped")
        return self.facts

    def check(self) -> None:
        """Unavailable, with the reason, where no request is taken."""
        if self.state == "ready":
            return
        wait_s = max(self._next_s - time.monotonic(), RETRY_S)
        why = f", {self._reason}" if self._reason and self.state != "stopped" else ""
        raise Unavailable(f"the engine is {self.state}{why}", wait_s)

    async def stream(
        self, request: EngineRequest, unread: list[Event] | None = None
    ) -> AsyncGenerator[Event]:
        """What comes of each choice, until all are finished. Whoever leaves early (`aclose`) ends the work.

        unread: gets what had come and was not taken by then: the engine goes on while its reader is slow.
        Unavailable, UserError for what the engine refuses, EngineError where it died.
        """
        self.check()
        number, box, left = next(self._numbers), _Mailbox(), request.params.n
        taken: list[Event] = []
        self._open[number] = box
        try:
            self._send(request_json(number, request))
            while left:
                taken = await box.take()
                while taken:
                    event = taken.pop(0)
                    left -= event.finish_reason is not None
                    yield event
        finally:
            if self._open.pop(number, None) is not None and left:
                self._send({"op": "abort", "id": number})
            if unread is not None:
                unread += taken + box.left()

    async def stats(self) -> EngineStats:
        """Zeros where no engine is there; the last that is known of one that does not answer soon."""
        if self.state == "ready":
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._ask(), STATS_S)
        return self._stats

    def _ask(self) -> "asyncio.Future[EngineStats]":
        number = next(self._numbers)
        future: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._send({"op": "stats", "id": number})
        if self._silent_since_s is None:
            self._silent_since_s = time.monotonic()
        return future

    async def _beat(self) -> None:
        """Ask now and then, so that a process that hangs is noticed: it is there, and nobody would restart it."""
        while True:
            await asyncio.sleep(min(PING_S, self._config.hung_after_s / 4))
            if self._silent_since_s is None:
                self._ask()
            elif self.state == "ready":
                silent_s = time.monotonic() - self._silent_since_s
                if silent_s >= self._config.hung_after_s:
                    self.state = "hung"
                    _log.critical("engine hangs: it has said nothing for %d s", silent_s)

    async def close(self) -> None:
        """End the process, and every request that is open."""
        self.state = "stopped"
        self._stopping.set()
        self._send({"op": "stop"})
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(self._task, STOP_S)
        self._settled.set()

    def _send(self, document: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode_line(document))

    async def _supervise(self) -> None:
        """Start the process, and another after each death. Where the first was never ready there is no other: what it
        ended of is told to whoever waits for it, and to act on it is for who started the server."""
        num_soon = 0
        while True:
            self._error = self._ready_s = None
            try:
                reason = await self._life()
            except OSError as error:
                reason = f"no process could be started: {error}"
            if self.state != "stopped":
                self.state = "loading" if self.facts is not None else "failed"
                self._reason = f"since {reason}"
            self._end_all(EngineError(reason))
            if self.state == "stopped":
                return
            self._error = self._error or EngineError(reason)
            if self.state == "failed":
                self._settled.set()
                _log.error("engine failed: %s", self._error)
                return
            lived_s = 0.0 if self._ready_s is None else time.monotonic() - self._ready_s
            num_soon = 1 if lived_s >= STEADY_S else num_soon + 1
            if await self._is_stopped_in(self._pause_s(num_soon)):
                return

    def _pause_s(self, num_soon: int) -> float:
        """After so many deaths that came soon; logs the last one."""
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(num_soon - 1, 32), LONGEST_PAUSE_S)
        level = logging.CRITICAL if num_soon >= _LOUD_DEATHS else logging.ERROR
        message = "engine died (%d in a row), starts again in %g s: %s"
        _log.log(level, message, num_soon, pause_s, self._error)
        return pause_s

    async def _is_stopped_in(self, pause_s: float) -> bool:
        self._settled.clear()
        self._next_s = time.monotonic() + pause_s
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), pause_s)
        return self._stopping.is_set()

    async def _life(self) -> str:
        """From the start of a process to its end; why it ended."""
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(filter(None, [str(_PACKAGES), os.environ.get("PYTHONPATH", "")]))
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,
            )
        self.process_id = process.pid
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=_MAX_LINE_BYTES)
        try:
            self._writer.write(self._config.model_dump_json().encode() + b"\n")
            while line := await reader.readline():
                self._silent_since_s = None
                if self.state == "hung":
                    self.state = "ready"
                    _log.warning("engine answers again")
                self._hear(json.loads(line))
            code = await process.wait()
            return f"its process ended with exit status {code}"
        except (ConnectionError, ValueError) as error:  # ValueError: a line that is too long
            return f"its process went away: {error}"
        finally:
            if self._beats is not None:
                self._beats.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            self._writer.close()
            self._writer, self.process_id = None, None
            self._silent_since_s = None

    def _hear(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.facts = EngineFacts(**message["ready"])
            if self.state == "loading":
                self.state = "ready"
            self._ready_s, self._reason = time.monotonic(), ""
            self._beats = asyncio.create_task(self._beat())
            self._settled.set()
            return
        if "failed" in message:
            self._error = read_error(message["failed"])
            return
        for fields in message["events"]:
            number, event = read_event(fields)
            if (box := self._open.get(number)) is not None:
                box.put(event)
        for reply in message["replies"]:
            if "stats" in reply:
                self._stats = EngineStats(**reply["stats"])
                future = self._asked.pop(reply["id"])
                if not future.done():
                    future.set_result(self._stats)
            elif (box := self._open.pop(reply["id"], None)) is not None:
                box.fail(read_error(reply["error"]))

    def _end_all(self, error: EngineError) -> None:
        boxes, self._open = self._open, {}
        for box in boxes.values():
            box.fail(error)
        asked, self._asked, self._stats = self._asked, {}, IDLE
        for future in asked.values():
            if not future.done():
                future.set_result(IDLE)
