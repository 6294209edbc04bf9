"""A process that answers JSON requests and can be killed: for code that may hang, crash or eat memory."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from nalar.config import UserError

MAX_REPLY_BYTES = 5_000_000
"""Enough for the most that a box may write, in base64."""
_CHUNK = 65_536
_PACKAGES = Path(__file__).parents[2]
"""Where this package lies. The folder that a program stands in is not looked into: `-P`."""
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")
"""Of the environment. Keys and tokens of the parent stay with the parent."""


class WorkerError(Exception):
    """No answer came: `timed_out`, or the process ended."""

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        self.timed_out = timed_out
        super().__init__(reason)


class Worker:
    """A module that calls `serve`, run as a process of its own; started when first asked, and anew after a death.

    One question at a time; others that ask wait for their turn. The time to start does not count against a question.
    """

    def __init__(
        self,
        module: str,
        *args: str,
        memory_bytes: int | None,
        start_s: float = 60,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        """memory_bytes: the address space that the process may take. None: as much as there is."""
        self.module, self.args = module, args
        self.memory_bytes, self.start_s = memory_bytes, start_s
        self.max_reply_bytes = max_reply_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""
        self._asking = threading.Lock()

    def ask(self, request: Mapping[str, Any], *, timeout_s: float) -> Any:
        """The answer, JSON in and out. WorkerError, and the process is gone, where none comes in time."""
        line = json.dumps(request).encode() + b"\n"
        with self._asking:
            if self._process is not None and self._process.poll() is not None:
                self.close()  # it ended between two questions, which is no fault of this one
            process = self._process or self._start()
            return self._exchange(process, line, time.monotonic() + timeout_s, timeout_s)

    def close(self) -> None:
        """Kill the process and whatever it started in its group."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None and sys is not None:
            with contextlib.suppress(Exception):
                self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        """UserError where the process says that it cannot work, such as without a package."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        path = os.pathsep.join(map(str, [_PACKAGES, *(Path(entry).absolute() for entry in given)]))
        process = (
            _starter()
            .submit(
                subprocess.Popen,
                [sys.executable, "-P", "-m", self.module, str(self.memory_bytes or 0), *self.args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=kept | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"},
                start_new_session=True,
            )
            .result()
        )
        self._process, self._read = process, b""
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        hello = self._exchange(process, b"", time.monotonic() + self.start_s, self.start_s)
        if isinstance(hello, Mapping) and (refusal := hello.get("refusal")):
            self.close()
            raise UserError(**refusal)
        return process

    def _exchange(
        self, process: subprocess.Popen[bytes], line: bytes, deadline: float, timeout_s: float
    ) -> Any:
        """Write a line and read one, neither of them waiting longer than the deadline."""
        try:
            self._write(process, line, deadline)
            return json.loads(self._line(process, deadline))
        except TimeoutError:
            self.close()
            raise WorkerError(f"no answer within {timeout_s:g} s", timed_out=True) from None
        except (OSError, EOFError, ValueError, RecursionError) as error:
            self.close()
            raise WorkerError(f"the worker ended: {error or type(error).__name__}") from None
        except BaseException:  # an answer that nobody waits for must not meet the next question
            self.close()
            raise

    def _write(self, process: subprocess.Popen[bytes], line: bytes, deadline: float) -> None:
        assert process.stdin is not None
        pipe = process.stdin.fileno()
        while line:
            _wait((), (pipe,), deadline)
            line = line[os.write(pipe, line[:_CHUNK]) :]

    def _line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        while b"\n" not in self._read:
            _wait((pipe,), (), deadline)
            chunk = os.read(pipe, _CHUNK)
            if not chunk:
                raise EOFError(f"exit status {process.wait(1)}")
            self._read += chunk
            if len(self._read) > self.max_reply_bytes:
                raise ValueError(f"an answer of more than {self.max_reply_bytes} bytes")
        line, _, self._read = self._read.partition(b"\n")
        return line


@cache
def _starter() -> ThreadPoolExecutor:
    """The thread that starts all processes. They end with the thread that started them, which must not be one that is
    gone after its first question; this one ends with the program."""
    return ThreadPoolExecutor(1, "starts workers")


os.register_at_fork(after_in_child=_starter.cache_clear)  # a fork has none of its parent's threads


def _wait(readers: tuple[int, ...], writers: tuple[int, ...], deadline: float) -> None:
    """TimeoutError where none is ready in time. `poll` and not `select`, which knows the first 1024 files alone."""
    left, poll = deadline - time.monotonic(), select.poll()
    for pipe in readers:
        poll.register(pipe, select.POLLIN)
    for pipe in writers:
        poll.register(pipe, select.POLLOUT)
    if left <= 0 or not poll.poll(left * 1000):
        raise TimeoutError
