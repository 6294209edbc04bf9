"""A small process that boxes are made from: it forks, locks the child away, watches it, and hands back its output.

It knows inputs and never the answers that are wanted, and each program is dealt with in a fork, so that a box finds
nothing of earlier programs, or of what they gave back, in its memory. Stdlib alone: a fork is quick, and its child,
which has no files left, finds the usual modules of the standard library loaded.
"""

import base64
import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from nalar.sandbox import cage
from nalar.sandbox.calls import run_job
from nalar.sandbox.serve import serve

PRELOADED = """abc array ast base64 binascii bisect calendar cmath collections collections.abc contextlib copy csv
dataclasses datetime decimal difflib enum fractions functools hashlib heapq io itertools json keyword locale math
numbers operator pprint queue random re secrets statistics string struct textwrap threading time types typing
unicodedata uuid zlib _strptime encodings.ascii encodings.latin_1 encodings.idna"""
GRACE_S = 5.0
"""Seconds beyond its limit after which a box that does not report is given up."""
_HERE = Path(__file__).parent
_TRIAL = {
    "program": "def f(x):\n    return x + 1\n",
    "function": "f",
    "calls": ["[1]"],
    "limits": {
        "cpu_s": 5,
        "wall_s": 10.0,
        "memory_bytes": 2**29,
        "processes": 1,
        "output_bytes": 10_000,
    },
}

Report = dict[str, Any]
"""`outcome` (ended, timeout, crashed, broken), and `output`, in base64 since it may be any bytes, or `why`."""


def forked(job: Mapping[str, Any], tier: str) -> Report:
    """A box made by forking this process."""
    out = os.memfd_create("out", os.MFD_CLOEXEC)
    report, tell = os.pipe()
    watcher = os.fork()
    if watcher == 0:
        with contextlib.suppress(BaseException):
            os.close(report)
            _watch(job, tier, out, tell)
        os._exit(0)
    os.close(tell)
    try:
        told = _read_all(report, job["limits"]["wall_s"] + GRACE_S)
        return _report(told, out, job)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(watcher, signal.SIGKILL)
        os.waitpid(watcher, 0)
        os.close(report)
        os.close(out)


def _watch(job: Mapping[str, Any], tier: str, out: int, tell: int) -> None:
    """In the child: fork the box itself, wait for it, kill it when its time is up.

    As the first process of its namespace, the box takes with it whatever it started.
    """
    os.setsid()
    try:
        cage.drop_root()
        cage.die_with_parent()  # after drop_root, which would undo it
        if tier == "namespaces":
            cage.unshare_all()
        box = os.fork()
    except OSError as error:
        _tell(tell, {"broken": str(error)})
        return
    if box == 0:
        _enter(job, tier, out, tell)
    has_ended = _wait(box, job["limits"]["wall_s"])
    if not has_ended:
        os.kill(box, signal.SIGKILL)
    _, status, used = os.wait4(box, 0)
    cpu_s = used.ru_utime + used.ru_stime
    _tell(tell, {"timed_out": not has_ended, "status": status, "cpu_s": cpu_s})


def _enter(job: Mapping[str, Any], tier: str, out: int, tell: int) -> NoReturn:
    """In the box: give everything up, the line to the watcher last, then run."""
    try:
        os.setsid()  # a signal to its own group must not reach the watcher
        cage.die_with_parent()
        cage.close_all_but(out, tell)
        if tier == "namespaces":
            cage.empty_root()
        if tier != "limits":
            cage.landlock()
        cage.drop_capabilities()
        if tier != "limits":
            cage.filter_calls()
        os.environ.clear()
        cage.limit(job["limits"])
        _tell(tell, {"began": True})
        os.close(tell)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            _tell(tell, {"broken": f"{type(error).__name__}: {error}"})
        os._exit(1)
    with contextlib.suppress(BaseException):
        run_job(job, out)
    os._exit(0)


def wrapped(job: Mapping[str, Any]) -> Report:
    """A box made by bubblewrap: a new interpreter that sees its standard library and nothing else of the machine."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        return {"outcome": "broken", "why": "bubblewrap: no bwrap on the path"}
    out = os.memfd_create("out", os.MFD_CLOEXEC)
    start = time.monotonic()
    process = subprocess.Popen(
        [bubblewrap, *_wrapping(), sys.executable, "-I", "-S", "/box/calls.py", "/box"],
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=subprocess.PIPE,
        env={},
        start_new_session=True,
    )
    try:
        wall_s = job["limits"]["wall_s"]
        _, complaint = process.communicate(json.dumps(job).encode(), timeout=wall_s)
        code = process.returncode  # above 128, bubblewrap means the signal that ended the box
        status = -code if code < 0 else code - 128 if code > 128 else code << 8
        told = {"timed_out": False, "status": status}
        if (
            code and complaint
        ):  # of bubblewrap, or of what comes before the program, which has no standard error
            return {"outcome": "broken", "why": complaint.decode(errors="replace").strip()[-300:]}
        return _report(told | {"cpu_s": time.monotonic() - start}, out, job)
    except subprocess.TimeoutExpired:
        return {"outcome": "timeout"}
    finally:
        process.kill()  # with it goes its namespace of processes
        process.communicate()
        os.close(out)


def _wrapping() -> list[str]:
    """Root drops itself inside, since limits of processes do not hold for it; others become nobody by a namespace."""
    is_root = os.geteuid() == 0
    flags = [
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--chdir",
        "/",
        "--cap-drop",
        "ALL",
    ]
    if is_root:
        flags += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        flags += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        flags += ["--unshare-all", "--uid", str(cage.NOBODY), "--gid", str(cage.NOBODY)]
    libraries = [
        path for path in ("/usr/lib", "/usr/lib64", "/lib", "/lib64") if Path(path).exists()
    ]
    real = str(Path(sys.executable).resolve())
    shown = {path: path for path in (*libraries, sys.base_prefix, real)}
    shown |= {f"/box/{name}": str(_HERE / name) for name in ("calls.py", "cage.py")}
    # Folders on the way that bubblewrap makes by itself are shut to all but their owner.
    folders = {str(folder) for path in (*shown, sys.executable) for folder in Path(path).parents}
    for folder in sorted(folders - {"/", *shown}):
        if not any(Path(folder).is_relative_to(path) for path in shown):
            flags += ["--perms", "0755", "--dir", folder]
    for path, source in shown.items():
        flags += ["--ro-bind", source, path]
    if not any(Path(sys.executable).is_relative_to(path) for path in shown):
        flags += ["--symlink", real, sys.executable]
    return [*flags, "--dev", "/dev", "--remount-ro", "/"]


def _wait(pid: int, seconds: float) -> bool:
    """Whether the child ended in time."""
    handle = os.pidfd_open(pid)
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def _tell(pipe: int, message: Mapping[str, Any]) -> None:
    os.write(pipe, json.dumps(message).encode() + b"\n")


def _read_all(pipe: int, seconds: float) -> dict[str, Any]:
    """What watcher and box said, all together, until both are silent; the first complaint counts."""
    text, deadline = b"", time.monotonic() + seconds
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(pipe, 4096)
        if not chunk:
            break
        text += chunk
    told: dict[str, Any] = {}
    for line in text.splitlines():
        told = json.loads(line) | told
    return told


def _report(told: Mapping[str, Any], out: int, job: Mapping[str, Any]) -> Report:
    """Whatever happens from the moment that the program began is its own doing, its watcher's end too."""
    if "broken" in told:
        return {"outcome": "broken", "why": told["broken"]}
    if "status" not in told:
        began = "began" in told
        why = "its watcher did not report" if began else "the box did not report"
        return {"outcome": "crashed" if began else "broken", "why": why}
    limits, status = job["limits"], told["status"]
    if told["timed_out"] or (os.WIFSIGNALED(status) and told["cpu_s"] >= limits["cpu_s"] - 0.5):
        return {"outcome": "timeout"}
    if status:
        by = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status >> 8}"
        return {"outcome": "crashed", "why": by}
    output = os.pread(out, limits["output_bytes"] + 1, 0)
    return {"outcome": "ended", "output": base64.b64encode(output).decode()}


def run(job: Mapping[str, Any], tier: str) -> Report:
    return wrapped(job) if tier == "bubblewrap" else forked(job, tier)


def objections() -> dict[str, str | None]:
    """For each tier why it does not work here; None where a trial came back right."""
    found: dict[str, str | None] = {}
    for tier in ("limits", "landlock", "namespaces", "bubblewrap"):
        try:
            report = run(_TRIAL, tier)
        except Exception as error:
            report = {"outcome": "broken", "why": f"{type(error).__name__}: {error}"}
        is_right = base64.b64decode(report.get("output", "")) == b'{"values": [[true, 2]]}'
        found[tier] = None if is_right else report.get("why", report["outcome"])
    return found


def _prepare() -> Callable[[Mapping[str, Any]], Any]:
    for name in PRELOADED.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)

    def answer(request: Mapping[str, Any]) -> Any:
        if "job" in request:
            return run(request["job"], request["tier"])
        return objections()

    return answer


if __name__ == "__main__":
    serve(_prepare, anew=True)
