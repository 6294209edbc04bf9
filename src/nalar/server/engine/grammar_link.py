"""The engine's end of the process that compiles and follows grammars. Imports no torch."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from nalar.config import UserError
from nalar.server.ask import GrammarSpec
from nalar.server.config import GrammarConfig
from nalar.server.engine.grammar_worker import COMPILED, ERROR, MASK, ids_bytes
from nalar.server.engine.messages import EngineError, read_error

MAX_COMPILING = 2
"""At once; further ones wait, so that those who send bad ones do not take every processor."""
_PATIENCE = 4
"""A child gets so many times its seconds of a processor by the clock, however busy the machine is."""
_MAX_REFUSED = 64
"""Grammars that are known to cost too much."""


class Followed:
    """A grammar that was compiled, in a process of its own: `Request.make_grammar`, until it is closed."""

    def __init__(self, spec: GrammarSpec, pipe: Connection, limits: GrammarConfig) -> None:
        self.spec, self.began_s = spec, float("inf")
        self._pipe, self._limits, self._num_samples = pipe, limits, 0

    def __call__(self) -> "FollowedSample":
        self._num_samples += 1
        return FollowedSample(self, self._num_samples)

    def fileno(self) -> int:
        return self._pipe.fileno()

    def close(self) -> None:
        """Its process ends."""
        self._pipe.close()

    @property
    def until_s(self) -> float:
        """When it must have compiled, by time.monotonic."""
        return self.began_s + _PATIENCE * self._limits.compile_s

    def is_compiled(self) -> bool:
        """Takes in what its process has said. UserError, EngineError where there is no grammar."""
        try:
            while self._pipe.poll():
                if self._heard(self._pipe.recv_bytes()) == COMPILED:
                    return True
                self.began_s = time.monotonic()
        except (EOFError, OSError):
            if self.began_s == float("inf"):
                raise EngineError("the process that compiles grammars went away") from None
            raise self._too_much() from None
        if time.monotonic() > self.until_s:
            raise self._too_much()
        return False

    def mask(self, sample: int, ids: Sequence[int]) -> bytes:
        """What may come behind `ids`, which are new. UserError where it can go no further, or costs too much."""
        try:
            self._pipe.send_bytes(ids_bytes(sample, ids))
            if self._pipe.poll(_PATIENCE * self._limits.burst_s):
                return self._heard(self._pipe.recv_bytes(), MASK)
        except (EOFError, OSError):
            pass
        limits = self._limits
        raise UserError(
            at=self.spec.about,
            got="a schema or grammar that costs too much to follow",
            want=f"{limits.mask_s:g} s of a processor for a token, {limits.burst_s:g} s now and then, "
            f"and {limits.memory_mib} MiB at most",
            hint="fewer alternatives that begin alike, shorter constants and patterns",
        )

    def _heard(self, data: bytes, wanted: bytes = b"") -> bytes:
        """What stands behind the first byte, where that is wanted; else the first byte."""
        if data[:1] == ERROR:
            error = read_error(json.loads(data[1:]))
            if isinstance(error, UserError) and error.at.startswith("grammar."):
                error = UserError(at=self.spec.about, got=error.got, want=error.want)
            raise error
        return data[1:] if data[:1] == wanted else data[:1]

    def _too_much(self) -> UserError:
        limits = self._limits
        return UserError(
            at=self.spec.about,
            got=f"a schema or grammar that compiles longer than {limits.compile_s:g} s or wants more than "
            f"{limits.memory_mib} MiB",
            want="one that costs less",
            hint="smaller numbers in multipleOf, fewer patterns and alternatives, shorter chains of $ref",
        )


class FollowedSample:
    """How far one sample has come: `Grammar` of the engine."""

    def __init__(self, grammar: Followed, number: int) -> None:
        self._grammar, self._number, self._new_ids = grammar, number, list[int]()

    def accept(self, token_id: int) -> None:
        self._new_ids.append(token_id)

    def allowed(self) -> bytes:
        ids, self._new_ids = self._new_ids, []
        return self._grammar.mask(self._number, ids)


class GrammarLink:
    """Compiles grammars for those who ask by number. Never waits."""

    def __init__(self, folder: Path, limits: GrammarConfig) -> None:
        self._folder, self._limits = folder, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._queue: deque[tuple[int, GrammarSpec]] = deque()
        self._compiling: dict[int, Followed] = {}
        self._failed: list[tuple[int, Exception]] = []
        self._refused: dict[GrammarSpec, UserError] = {}

    def ask(self, number: int, spec: GrammarSpec) -> None:
        """`settled` will have an answer, unless `drop` comes first."""
        if spec in self._refused:
            self._failed.append((number, self._refused[spec]))
        else:
            self._queue.append((number, spec))
            self._start()

    def drop(self, number: int) -> None:
        """Nobody waits for it any more."""
        self._queue = deque(one for one in self._queue if one[0] != number)
        self._failed = [one for one in self._failed if one[0] != number]
        if number in self._compiling:
            self._compiling.pop(number).close()
        self._start()

    @property
    def pending(self) -> Sequence[Followed]:
        """What may have news, to be waited for by select."""
        return list(self._compiling.values())

    @property
    def wait_s(self) -> float | None:
        """How long news can be waited for. None: until some come."""
        if self._failed:
            return 0.0
        until_s = min((one.until_s for one in self._compiling.values()), default=float("inf"))
        return None if until_s == float("inf") else max(until_s - time.monotonic(), 0.0)

    def settled(self) -> Iterator[tuple[int, Followed | Exception]]:
        """What was compiled since, and what cannot be."""
        for number, grammar in list(self._compiling.items()):
            try:
                if not grammar.is_compiled():
                    continue
                result: Followed | Exception = grammar
            except (UserError, EngineError) as error:
                grammar.close()
                result = error
                # What only a busy machine has kept from compiling may be tried again.
                if isinstance(error, UserError) and time.monotonic() < grammar.until_s:
                    self._remember(grammar.spec, error)
            del self._compiling[number]
            yield number, result
        failed, self._failed = self._failed, []
        yield from failed
        self._start()

    def _remember(self, spec: GrammarSpec, error: UserError) -> None:
        self._refused[spec] = error
        if len(self._refused) > _MAX_REFUSED:
            del self._refused[next(iter(self._refused))]

    def _start(self) -> None:
        while self._queue and len(self._compiling) < MAX_COMPILING:
            number, spec = self._queue.popleft()
            try:
                self._compiling[number] = self._begun(spec)
            except OSError as error:
                self._failed.append((number, EngineError(f"no grammar could be compiled: {error}")))

    def _begun(self, spec: GrammarSpec) -> Followed:
        ours, theirs = Pipe()
        with theirs, tempfile.TemporaryFile() as file:
            file.write(json.dumps([spec.kind, spec.text]).encode())
            file.seek(0)
            socket.send_fds(self._running(), [b"g"], [theirs.fileno(), file.fileno()])
        return Followed(spec, ours, self._limits)

    def _running(self) -> socket.socket:
        """Of the process, which is started where there is none."""
        if self._socket is not None and self._process is not None and self._process.poll() is None:
            return self._socket
        if self._socket is not None:
            self._socket.close()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "nalar.server.engine.grammar_worker"),
                    *(str(theirs.fileno()), str(self._folder), self._limits.model_dump_json()),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        return self._socket
