"""Processes that start at once: forks of this one, which has loaded what they import.

python forks.py WHAT [MODULE ...]: imports the modules, and WHAT, a script or a module with a function `main`. Each line
read is JSON, {"args": [...], "cwd": folder}: one process that calls main(args), of a script main(*args), and ends. What
it prints goes straight to the parent, between a line `pid N` and a line `exit CODE`.
"""

import importlib
import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from typing import Any


def main_of(what: str) -> Callable[[list[str]], Any]:
    if what.endswith(".py"):
        main = runpy.run_path(what)["main"]
        return lambda args: main(*args)
    return importlib.import_module(what).main


def become(main: Callable[[list[str]], Any], args: list[str], cwd: str) -> int:
    """What the fork does, as a process of its own would; the exit code."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    print(f"pid {os.getpid()}", flush=True)
    os.chdir(cwd)
    try:
        return main(args) or 0
    except BaseException:
        traceback.print_exc()
        return 1


def serve(what: str, *modules: str) -> None:
    main = main_of(what)
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = become(main, **json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        # A line that a kill cut short ends here.
        print(f"\nexit {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
