"""The inside of a worker: answer JSON requests, one a line, until nobody asks any more. Stdlib alone."""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

_PR_SET_PDEATHSIG = 1


class Refusal(Exception):
    """This worker cannot work; whoever started it gets a UserError of the same words."""

    def __init__(self, *, at: str, got: str, want: str, hint: str | None = None) -> None:
        self.told = {"at": at, "got": got, "want": want, "hint": hint}
        super().__init__(got)


def serve(prepare: Callable[[], Callable[[Any], Any]], *, anew: bool = False) -> None:
    """Answer until the input ends; the first argument of the process is its limit of address space, 0 for none.

    prepare: loads what is needed and returns the function that answers; it may raise Refusal.
    anew: read and answer each question in a fork, so that this process never holds one, nor its answer.
    An exception of the answering function is answered as `{"error": ...}`.
    """
    die_with_parent()
    limit_memory(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever is printed is no answer
    try:
        answer = prepare()
    except Refusal as refusal:
        _say(out, json.dumps({"refusal": refusal.told}))
        return
    _say(out, json.dumps({"ready": True}))
    if anew:
        while _answered_in_a_fork(answer, out):
            pass
        return
    for line in sys.stdin.buffer:
        _say(out, _answer(answer, line))


def _answer(answer: Callable[[Any], Any], line: bytes) -> str:
    """As JSON; an answer that is none is an error too."""
    try:
        return json.dumps(answer(json.loads(line)))
    except Exception as error:
        return json.dumps({"error": f"{type(error).__name__}: {error}"[:500]})


def _answered_in_a_fork(answer: Callable[[Any], Any], out: TextIO) -> bool:
    """Wait for a question, and have a child read and answer it; False where there was none, or the child ended."""
    select.select([0], [], [])
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            die_with_parent()
            if os.getppid() == parent and (line := _line()):
                _say(out, _answer(answer, line))
                os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _line() -> bytes:
    """The one line that waits to be read; whoever asks waits for the answer before the next. b"" at the end."""
    read = b""
    while not read.endswith(b"\n"):
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return b""
        read += chunk
    return read


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends, however it ends; Linux only.

    Where it has ended already, the input has too, and nothing is asked any more.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def limit_memory(size_bytes: int) -> None:
    if size_bytes:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _say(out: TextIO, line: str) -> None:
    out.write(line + "\n")
    out.flush()
