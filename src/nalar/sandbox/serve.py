"""The inside of a worker: answer JSON requests, one a line, until nobody asks any more."""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from nalar.config import UserError

_PR_SET_PDEATHSIG = 1


def serve(prepare: Callable[[], Callable[[Any], Any]]) -> None:
    """Answer until the input ends; the first argument of the process is its limit of address space, 0 for none.

    prepare: loads what is needed and returns the function that answers. A UserError of it is told to whoever asked.
    An exception of the answering function is answered as `{"error": ...}`.
    """
    die_with_parent()
    limit_memory(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever is printed is no answer
    try:
        answer = prepare()
    except UserError as error:
        told = {"at": error.at, "got": error.got, "want": error.want, "hint": error.hint}
        _say(out, {"refusal": told})
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
