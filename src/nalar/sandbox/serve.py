"""The inside of a worker: answer JSON requests, one a line, until nobody asks any more. Stdlib alone."""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1


class Refusal(Exception):
    """This worker cannot work; whoever started it gets a UserError of the same words."""

    def __init__(self, *, at: str, got: str, want: str, hint: str | None = None) -> None:
        self.told = {"at": at, "got": got, "want": want, "hint": hint}
        super().__init__(got)


def serve(prepare: Callable[[], Callable[[Any], Any]]) -> None:
    """Answer until the input ends; the first argument of the process is its limit of address space, 0 for none.

    prepare: loads what is needed and returns the function that answers; it may raise Refusal.
    An exception of the answering function is answered as `{"error": ...}`.
    """
    die_with_parent()
    limit_memory(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever is printed is no answer
    try:
        answer = prepare()
    except Refusal as refusal:
        _say(out, {"refusal": refusal.told})
        return
    _say(out, {"ready": True})
    for line in sys.stdin.buffer:
        try:
            _say(out, answer(json.loads(line)))
        except Exception as error:
            _say(out, {"error": f"{type(error).__name__}: {error}"[:500]})


def die_with_parent() -> None:
    """Be killed when the process that started this one ends, however it ends; Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() == 1:  # it ended before this was asked for
            sys.exit(1)


def limit_memory(size_bytes: int) -> None:
    if size_bytes:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _say(out: Any, message: Any) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()
