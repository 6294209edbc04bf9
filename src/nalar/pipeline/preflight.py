"""Can this machine run this recipe? Asked before anything is written. Imports no torch."""

import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nalar.config import UserError
from nalar.data.files import refuse_missing
from nalar.machine import environment
from nalar.pipeline.config import RunConfig, SftConfig, ZeroConfig
from nalar.pipeline.forecast import Forecast


@dataclass(frozen=True)
class Machine:
    """What a run may use."""

    cores: int
    memory_bytes: int
    free_disk_bytes: int
    """Where the run's folder will lie."""


def this_machine(root: Path) -> Machine:
    """This machine, with the disk that `root` lies on or would lie on."""
    here = environment()
    free = shutil.disk_usage(existing_parent(root)).free
    return Machine(cores=here.cores, memory_bytes=here.memory_bytes, free_disk_bytes=free)


def existing_parent(path: Path) -> Path:
    """The nearest folder above that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def refuse_if_too_small(config: RunConfig, need: Forecast, machine: Machine) -> None:
    """UserError where the machine lacks the cores, memory or disk that a run needs."""
    if config.threads > machine.cores:
        raise UserError(
            at="threads",
            got=f"{config.threads} threads on {_count(machine.cores, 'core')}",
            want="at most one thread a core",
            hint=f"--threads {machine.cores}: slower, and other weights for the same seed",
        )
    _enough("memory", machine.memory_bytes, need.memory_bytes, "smaller micro-batches")
    _enough(
        "disk",
        machine.free_disk_bytes,
        need.disk_bytes,
        "free some space, or choose --run on another disk",
    )


def refuse_if_not_installed(config: RunConfig) -> None:
    """UserError where the config asks for a package that is not there."""
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            at="tensorboard",
            got="the package tensorboard is not installed",
            want="the package, or no --tensorboard",
            hint="pip install 'nalar[tensorboard]'",
        )


def refuse_if_no_data(config: RunConfig) -> None:
    """UserError where a source, or the tokenizer that the config names, is not there."""
    if isinstance(config, SftConfig):
        refuse_missing(config.reading)
    if not isinstance(config, ZeroConfig):
        return
    refuse_missing(config.data)
    path = config.tokenizer.path
    if path is not None and not (Path(path).expanduser() / "tokenizer.json").is_file():
        raise UserError(
            at=f"tokenizer.path {path}",
            got="no tokenizer.json",
            want="a folder with a tokenizer, as `nalar tokenizer` writes it",
        )


def refuse_if_not_writable(root: Path) -> None:
    """UserError where nothing can be written under `root`. Leaves nothing behind."""
    parent = existing_parent(root)
    try:
        if not parent.is_dir():
            raise NotADirectoryError(f"{parent} is a file")
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            at=str(root),
            got=error.strerror or str(error),
            want="a folder that can be written to",
            hint="--run PATH chooses another place",
        ) from error


def _enough(what: str, have_bytes: int, need_bytes: int, hint: str) -> None:
    if have_bytes < need_bytes:
        got = f"{have_bytes / 1e9:.2f} GB of {what}"
        want = f"at least {need_bytes / 1e9:.2f} GB for this recipe"
        raise UserError(at=what, got=got, want=want, hint=hint)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
