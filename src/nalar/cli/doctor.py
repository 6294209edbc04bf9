"""`nalar doctor`: does this machine have what nalar needs?"""

import dataclasses
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from pydantic import BaseModel
from rich.text import Text

from nalar.cli import flags
from nalar.cli.choice import RUNS
from nalar.cli.output import Document, Output
from nalar.config import UserError
from nalar.machine import Environment, environment
from nalar.pipeline.preflight import existing_parent, refuse_if_not_writable
from nalar.sandbox.box import Box
from nalar.sandbox.config import TIERS, SandboxConfig

Verdict = Literal["ok", "optional", "missing"]

PYTHON = (3, 11)
TORCH = (2, 11)
MEMORY_BYTES = 2_000_000_000
DISK_BYTES = 500_000_000
CORES = 2
_STYLES = {"ok": "green", "optional": "yellow", "missing": "bold red"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check Python, torch, cores, memory, disk, the runs folder, the sandbox, optional tools and the terminal.

    Exits with 1 where something needed is missing, and says what to do. Try:

    nalar doctor
    """

    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


class Check(BaseModel):
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    """`missing` is needed; `optional` would be good to have."""
    found: str
    todo: str | None = None


class DoctorDocument(Document):
    ok: bool
    """Nothing needed is missing."""
    checks: list[Check]


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    flags.parse(Doctor, args, verb="doctor")
    checks = examine()
    for check in checks:
        line = Text.assemble(
            (f"{check.verdict:<9}", _STYLES[check.verdict]), f"{check.name:<13}", check.found
        )
        if check.todo:
            line.append(f"\n{'':22}→ {check.todo}")
        out.text(line)
    ok = all(check.verdict != "missing" for check in checks)
    if not ok:
        out.text("\nSomething needed is missing: see the lines marked so.")
    out.document(DoctorDocument(ok=ok, checks=checks))
    return 0 if ok else 1


def examine() -> list[Check]:
    """All checks, in the order in which a new user would want them."""
    machine = environment()
    on_machine: list[Callable[[Environment], Check]] = [_python, _torch, _cores, _memory]
    rest: list[Callable[[], Check]] = [
        _disk,
        _runs_folder,
        _sandbox,
        _transformers,
        _chromium,
        _terminal,
    ]
    return [check(machine) for check in on_machine] + [check() for check in rest]


def _python(machine: Environment) -> Check:
    wanted = ".".join(map(str, PYTHON))
    return _check(
        "python", sys.version_info >= PYTHON, machine.python, f"install Python {wanted} or newer"
    )


def _torch(machine: Environment) -> Check:
    found = machine.packages.get("torch")
    wanted = ".".join(map(str, TORCH))
    todo = f"pip install 'torch>={wanted}'"
    if found is None:
        return _check("torch", False, "not installed", todo)
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdecimal())
    threads = os.environ.get("OMP_NUM_THREADS")
    note = f", OMP_NUM_THREADS={threads}" if threads else ""
    return _check("torch", numbers >= TORCH, found + note, todo)


def _cores(machine: Environment) -> Check:
    enough = machine.cores >= CORES
    todo = "recipes count on two threads: --threads 1 goes too, slower"
    found = f"{machine.cores} ({machine.cpu})"
    return _check("cores", enough, found, todo, otherwise="optional")


def _memory(machine: Environment) -> Check:
    todo = f"zero-cpu wants {MEMORY_BYTES / 1e9:.0f} GB"
    found = f"{machine.memory_bytes / 1e9:.1f} GB"
    return _check("memory", machine.memory_bytes >= MEMORY_BYTES, found, todo)


def _disk() -> Check:
    free = shutil.disk_usage(existing_parent(RUNS)).free
    todo = f"free some space: a run wants {DISK_BYTES / 1e6:.0f} MB to be safe"
    return _check("disk", free >= DISK_BYTES, f"{free / 1e9:.1f} GB free", todo)


def _runs_folder() -> Check:
    try:
        refuse_if_not_writable(RUNS / "any")
    except UserError as error:
        todo = "go to a folder that can be written to, or name one by --run PATH"
        return _check("runs folder", False, error.got, todo)
    return _check("runs folder", True, f"{RUNS.absolute()} can be written", "")


def _sandbox() -> Check:
    """How well programs that a model wrote can be locked away here."""
    box = Box(SandboxConfig(min_tier="limits"))
    try:
        working = [tier for tier in TIERS if box.objections[tier] is None]
    finally:
        box.close()
    todo = "only needed for tasks of programs: install bubblewrap, or allow user namespaces (docs/sandbox.md)"
    enough = {"namespaces", "bubblewrap"} & set(working)
    found = ", ".join(reversed(working)) or "none"
    return _check("sandbox", bool(enough), found, todo, otherwise="optional")


def _transformers() -> Check:
    todo = "only needed to load checkpoints elsewhere: pip install transformers"
    if importlib.util.find_spec("transformers") is None:
        return _check("transformers", False, "not installed", todo, otherwise="optional")
    try:
        return _check("transformers", True, version("transformers"), todo)
    except PackageNotFoundError:
        return _check("transformers", False, "of no known version", todo, otherwise="optional")


def _chromium() -> Check:
    names = ("chromium", "chromium-browser", "google-chrome", "firefox")
    found = next(filter(None, map(shutil.which, names)), None)
    todo = "only needed to look at report.html on this machine; any browser elsewhere will do"
    return _check("browser", found is not None, found or "none", todo, otherwise="optional")


def _terminal() -> Check:
    if not sys.stdout.isatty():
        return _check(
            "terminal",
            False,
            "none",
            "a run prints log lines instead of bars",
            otherwise="optional",
        )
    size = shutil.get_terminal_size()
    todo = "80 columns or more show the bars whole"
    return _check(
        "terminal", size.columns >= 80, f"{size.columns} columns", todo, otherwise="optional"
    )


def _check(
    name: str, is_good: bool, found: str, todo: str, *, otherwise: Verdict = "missing"
) -> Check:
    if is_good:
        return Check(name=name, verdict="ok", found=found)
    return Check(name=name, verdict=otherwise, found=found, todo=todo)
