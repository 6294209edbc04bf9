"""The engine's end of the process that compiles and follows grammars. Imports no torch."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from nalar.config import UserError
from nalar.server.ask import GrammarSpec
from nalar.server.config import GrammarConfig, WorkerConfig
from nalar.server.engine.grammar_worker import BEGUN, COMPILED, ERROR, drop_bytes, ids_bytes, split
from nalar.server.engine.messages import EngineError, read_error

MAX_COMPILING = 2
"""At once; further ones wait, so that those who send bad ones do not take every processor."""
MAX_KEPT = 16
"""Grammars that are kept though nobody uses them: what was asked once is asked again."""
MAX_SAMPLES = 4096
"""Of one process; what llguidance remembers of them grows."""
_MAX_ASKED = 64
"""Masks of one process that are waited for; more would fill the pipe both ways."""
_PATIENCE = 4
"""A process gets so many times its seconds of a processor by the clock, however busy the machine is."""
_MAX_REFUSED = 64
"""Grammars that are known to cost too much."""


class _Child:
    """One grammar in its process. Nothing here waits, but `hear` as long as it is told."""

    def __init__(self, spec: GrammarSpec, pipe: Connection, limits: GrammarConfig) -> None:
        self.spec, self.pipe, self._limits = spec, pipe, limits
        self.error: Exception | None = None
        """Once nothing more comes of it."""
        self.is_compiled = self.is_late = False
        """is_late: the engine has waited for the newest mask, and in vain."""
        self.num_users = 0
        self.unanswered = Counter[int]()
        """Masks that will come, by sample."""
        self.masks: dict[int, bytes | UserError] = {}
        """The newest of each sample."""
        self._numbers, self._num_made = count(), 0
        self._outbox: deque[tuple[int, bytes]] = deque()
        self._dropped: list[int] = []
        """Samples that it has not been told of."""
        self._num_asked = 0
        self._since_s = float("inf")
        """When it began to compile, or had nothing to do for the last time."""

    @property
    def is_usable(self) -> bool:
        return self.error is None and self._num_made < MAX_SAMPLES

    def new_sample(self) -> int:
        self._num_made += 1
        number = next(self._numbers)
        self.masks[number] = b""
        self.ask(number, ())
        return number

    def ask(self, sample: int, ids: Sequence[int]) -> None:
        """The mask behind `ids`, which are new."""
        self.unanswered[sample] += 1
        self._outbox.append((sample, ids_bytes(sample, ids)))
        self._push()

    def drop(self, samples: Sequence[int]) -> None:
        for sample in samples:
            self.masks.pop(sample, None)
        for one in [one for one in self._outbox if one[0] not in self.masks]:
            self._outbox.remove(one)
            self._answered(one[0])
        if self.is_compiled:
            self._dropped += samples
            self._push()

    def hear(self, wait_s: float = 0.0) -> None:
        """Take in what it has said, waiting so long for the first of it."""
        try:
            while self.error is None and self.pipe.poll(wait_s):
                self._heard(self.pipe.recv_bytes())
                wait_s = 0.0
        except (EOFError, OSError):
            self._fail()
        if self.error is None and time.monotonic() > self.until_s:
            self._fail()

    @property
    def until_s(self) -> float:
        """When it must have said something, by time.monotonic."""
        limits = self._limits
        due_s = limits.burst_s + self._num_asked * limits.mask_s
        return self._since_s + _PATIENCE * (due_s if self.is_compiled else limits.compile_s)

    def _heard(self, data: bytes) -> None:
        kind, sample, rest = split(data)
        self._since_s = time.monotonic()
        if kind == BEGUN:
            return
        if kind == COMPILED:
            self.is_compiled = True
        elif not self.is_compiled:
            self.error = self._error(rest)
        else:
            self._num_asked -= 1
            self._answered(sample)
            if sample in self.masks:
                self.masks[sample] = self._user_error(rest) if kind == ERROR else rest
        if not self._num_asked:
            self._since_s = float("inf")
        self._push()

    def _answered(self, sample: int) -> None:
        self.unanswered[sample] -= 1
        if not self.unanswered[sample]:
            del self.unanswered[sample]

    def _push(self) -> None:
        if self._dropped and not self._num_asked and self.is_compiled:
            # Only to one that listens: while it says a mask, what is sent may fill the pipe, and both would wait.
            self._send(drop_bytes(self._dropped))
            self._dropped = []
        while self._outbox and self.is_compiled and self._num_asked < _MAX_ASKED:
            if not self._num_asked:
                self._since_s = time.monotonic()
            self._num_asked += 1
            self._send(self._outbox.popleft()[1])

    def _send(self, data: bytes) -> None:
        try:
            self.pipe.send_bytes(data)
        except OSError:
            self._fail()

    def _error(self, data: bytes) -> Exception:
        error = read_error(json.loads(data))
        if isinstance(error, UserError) and error.at.startswith(("grammar.", "request.")):
            return UserError(at=self.spec.about, got=error.got, want=error.want)
        return error

    def _user_error(self, data: bytes) -> UserError:
        error = self._error(data)
        return error if isinstance(error, UserError) else self._too_much_to_follow()

    def _fail(self) -> None:
        if self.error is None and not self.is_compiled and self._since_s == float("inf"):
            self.error = EngineError("the process that compiles grammars went away")
        elif self.error is None:
            too_much = self._too_much_to_follow if self.is_compiled else self._too_much_to_compile
            self.error = too_much()

    def _too_much_to_compile(self) -> UserError:
        limits = self._limits
        return UserError(
            at=self.spec.about,
            got=f"a schema or grammar that compiles longer than {limits.compile_s:g} s or wants more than "
            f"{limits.memory_mib} MiB",
            want="one that costs less",
            hint="smaller numbers in multipleOf, fewer patterns and alternatives, shorter chains of $ref",
        )

    def _too_much_to_follow(self) -> UserError:
        limits = self._limits
        return UserError(
            at=self.spec.about,
            got="a schema or grammar that costs too much to follow",
            want=f"{limits.mask_s:g} s of a processor for a token, {limits.burst_s:g} s now and then, "
            f"and {limits.memory_mib} MiB at most",
            hint="fewer alternatives that begin alike, shorter constants and patterns",
        )


class Followed:
    """A grammar that one request holds to, until it is closed: `Request.make_grammar`."""

    def __init__(self, child: _Child, grace_s: float) -> None:
        """grace_s: how long the engine waits for a mask before it goes on without this request."""
        self.child, self._grace_s = child, grace_s
        child.num_users += 1
        self._samples = [child.new_sample()]
        self._num_made = 0

    def __call__(self) -> "FollowedSample":
        """The first has been asked for already."""
        self._num_made += 1
        if self._num_made > len(self._samples):
            self._samples.append(self.child.new_sample())
        return FollowedSample(self.child, self._samples[self._num_made - 1])

    @property
    def has_masks(self) -> bool:
        """Whether all that was asked is known, be it that nothing more comes."""
        child = self.child
        return child.error is not None or not any(child.unanswered[one] for one in self._samples)

    def may_draw(self) -> bool:
        """`has_masks`, soon: the engine waits for those that are in time."""
        child = self.child
        until_s = time.monotonic() + (0.0 if child.is_late else self._grace_s)
        while not self.has_masks:
            left_s = max(until_s - time.monotonic(), 0.0)
            child.hear(left_s)
            if not left_s:
                break
        child.is_late = not self.has_masks
        return not child.is_late

    def close(self) -> None:
        self.child.num_users -= 1
        self.child.drop(self._samples)
        if not (self.child.num_users or self.child.is_usable):
            self.child.pipe.close()


class FollowedSample:
    """How far one sample has come: `Grammar` of the engine."""

    def __init__(self, child: _Child, number: int) -> None:
        self._child, self._number = child, number

    def accept(self, token_id: int) -> None:
        self._child.ask(self._number, (token_id,))

    def allowed(self) -> bytes:
        """UserError where the grammar can go no further, or costs too much."""
        child = self._child
        while child.unanswered[self._number] and child.error is None:
            child.hear(max(child.until_s - time.monotonic(), 0.0))
        if child.error is not None:
            raise child.error
        mask = child.masks[self._number]
        if isinstance(mask, UserError):
            raise mask
        return mask


class GrammarLink:
    """Compiles grammars for those who ask by number. Never waits."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config, self._limits = config, config.grammar
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._queue: dict[int, GrammarSpec] = {}
        self._waiting: dict[int, Followed] = {}
        """For their first mask."""
        self._failed: list[tuple[int, Exception]] = []
        self._children: dict[GrammarSpec, _Child] = {}
        """Those that may be used again, the last used last."""
        self._living: list[_Child] = []
        """Those too that are full, and have users left."""
        self._refused: dict[GrammarSpec, Exception] = {}

    def ask(self, number: int, spec: GrammarSpec) -> None:
        """`settled` will have an answer, unless `drop` comes first."""
        if spec in self._refused:
            self._failed.append((number, self._refused[spec]))
        else:
            self._queue[number] = spec
            self._start()

    def drop(self, number: int) -> None:
        """Nobody waits for it any more."""
        self._queue.pop(number, None)
        self._failed = [one for one in self._failed if one[0] != number]
        if number in self._waiting:
            followed = self._waiting.pop(number)
            followed.close()
            if not (followed.child.is_compiled or followed.child.num_users):
                self._discard(followed.child)
        self._start()

    @property
    def pending(self) -> Sequence[Connection]:
        """What may have news, to be waited for."""
        return [one.pipe for one in self._busy]

    @property
    def wait_s(self) -> float | None:
        """How long news can be waited for. None: until some come."""
        if self._failed:
            return 0.0
        until_s = min((one.until_s for one in self._busy), default=float("inf"))
        return None if until_s == float("inf") else max(until_s - time.monotonic(), 0.0)

    @property
    def _busy(self) -> Sequence[_Child]:
        living = (one for one in self._living if one.error is None and not one.pipe.closed)
        return [one for one in living if one.unanswered.total()]

    def settled(self) -> Iterator[tuple[int, Followed | Exception]]:
        """What can be followed since the last call, and what cannot be."""
        for child in self._busy:
            child.hear()
        for number, followed in list(self._waiting.items()):
            if followed.has_masks:
                del self._waiting[number]
                error = followed.child.error
                if error is not None:
                    followed.close()
                    self._note(followed.child, error)
                yield number, followed if error is None else error
        failed, self._failed = self._failed, []
        yield from failed
        self._start()

    def _note(self, child: _Child, error: Exception) -> None:
        """What only a busy machine has kept from compiling may be tried again."""
        if isinstance(error, UserError) and time.monotonic() < child.until_s:
            self._refused[child.spec] = error
            if len(self._refused) > _MAX_REFUSED:
                del self._refused[next(iter(self._refused))]

    def _start(self) -> None:
        for number, spec in list(self._queue.items()):
            child = self._children.get(spec)
            if child is None or not child.is_usable:
                if self._num_compiling >= MAX_COMPILING:
                    continue
                try:
                    child = self._begun(spec)
                except OSError as error:
                    del self._queue[number]
                    self._failed.append((number, EngineError(f"no grammar is compiled: {error}")))
                    continue
            self._children.pop(spec, None)
            self._children[spec] = child
            del self._queue[number]
            self._waiting[number] = Followed(child, self._limits.mask_s)
        self._forget()

    @property
    def _num_compiling(self) -> int:
        children = self._children.values()
        return sum(not one.is_compiled and one.error is None for one in children)

    def _forget(self) -> None:
        """Those that ended, and those that nobody uses and has used for long."""
        idle = [one for one in self._children.values() if not one.num_users]
        for i, child in enumerate(idle):
            if i < len(idle) - MAX_KEPT or not child.is_usable:
                self._discard(child)
        self._living = [one for one in self._living if not one.pipe.closed]

    def _discard(self, child: _Child) -> None:
        if self._children.get(child.spec) is child:
            del self._children[child.spec]
        child.pipe.close()

    def _begun(self, spec: GrammarSpec) -> _Child:
        ours, theirs = Pipe()
        with theirs, tempfile.TemporaryFile() as file:
            file.write(json.dumps([spec.kind, spec.text]).encode())
            file.seek(0)
            socket.send_fds(self._running(), [b"g"], [theirs.fileno(), file.fileno()])
        child = _Child(spec, ours, self._limits)
        self._living.append(child)
        return child

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
                    *(str(theirs.fileno()), self._config.model_dump_json()),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        return self._socket
