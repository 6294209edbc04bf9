"""Inside the box: run a program, call its function, write what came back as JSON. Stdlib alone.

Whatever the program does to this process, it gains nothing: it sees the inputs and not the answers, and the
comparison is made elsewhere. Run as a file, it is the box of the tier bubblewrap: the job comes by standard input.
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 20
PLAIN = (bool, int, float, str, type(None))


def run_job(job: Mapping[str, Any], out: int) -> None:
    """Write one document to the file `out`: `{"values": [[true, value], [false, why], ...]}` or `{"failed": why}`."""
    document: dict[str, Any]
    try:
        namespace: dict[str, Any] = {"__name__": "answer"}
        exec(compile(job["program"], "<answer>", "exec"), namespace)
        function = namespace[job["function"]]
    except BaseException as error:
        document = {"failed": type(error).__name__}
    else:
        document = {"values": [_called(function, text) for text in job["calls"]]}
    text = json.dumps(document).encode()
    while text:
        text = text[os.write(out, text) :]


def _called(function: Any, arguments: str) -> tuple[bool, Any]:
    """The value of one call, or the reason why there is none. Arguments are read anew for each call."""
    try:
        value = function(*json.loads(arguments))
        return (True, value) if _is_plain(value, MAX_DEPTH) else (False, "no plain value")
    except BaseException as error:
        return False, type(error).__name__


def _is_plain(value: Any, depth: int) -> bool:
    """Whether JSON says what it is: no tuple, no class of one's own."""
    if type(value) in PLAIN:
        return value == value and value not in (float("inf"), -float("inf"))
    if depth == 0:
        return False
    if type(value) is list:
        return all(_is_plain(item, depth - 1) for item in value)
    if type(value) is dict:
        return all(type(k) is str and _is_plain(v, depth - 1) for k, v in value.items())
    return False


def _main() -> None:
    """argv: the folder of cage.py, and whether root is to be dropped."""
    sys.path.insert(0, sys.argv[1])
    import cage  # type: ignore[import-not-found]  # lies beside this file in the box

    job = json.loads(sys.stdin.buffer.read())
    out, null = os.dup(1), os.open("/dev/null", os.O_RDWR)
    cage.close_all_but(out, null, 2)  # what goes wrong up to the program is told by standard error
    cage.drop_root()
    cage.drop_capabilities()
    cage.filter_calls()
    cage.limit(job["limits"])
    os.dup2(null, 2)
    os.close(null)
    try:
        run_job(job, out)
    finally:
        os._exit(0)


if __name__ == "__main__":
    _main()
