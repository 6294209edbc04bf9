"""The files of a run as the page may read them: names come from addresses, and no link leads out of the folder.

Imports no torch.
"""

import contextlib
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

from nalar.config import UserError
from nalar.plan.r1_stages import FOLDER
from nalar.run import Run

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
"""Of a run, a part of one, or a set of samples."""


class NoSuchRunError(Exception):
    """No run, no part of one, or no file of it by that name."""


def opened(root: Path | None, name: str, part: str) -> Run:
    """The run, or the run of one stage of a pipeline."""
    if root is None or not NAME.fullmatch(name) or not (part == "" or NAME.fullmatch(part)):
        raise NoSuchRunError(f"no run {name!r}")
    path = root / name if part == "" else root / name / FOLDER / part
    resolved = path.resolve()
    if not resolved.is_relative_to(root.resolve()) or not (path / "run.json").is_file():
        raise NoSuchRunError(f"no run {'/'.join(filter(None, (name, part)))!r}")
    inside(path, "run.json")
    return Run.open(path)


def inside(folder: Path, name: str) -> Path:
    """A file of the folder; NoSuchRunError where a link leads out of it."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise NoSuchRunError(f"{name} of {folder.name} is a link to elsewhere")
    return path


def chunk(path: Path, since: int, limit_bytes: int) -> tuple[bytes, int, bool]:
    """Whole lines of a log behind byte `since`, where they begin, and whether there are more than fit.

    They begin at 0 instead where no line ends at `since`: the log was cut back. UserError where a line does not fit.
    """
    try:
        file = path.open("rb")
    except OSError:
        return b"", 0, False
    with file:
        size = file.seek(0, os.SEEK_END)
        is_cut_back = since > size or (since > 0 and _byte(file, since - 1) != b"\n")
        begin = 0 if is_cut_back else since
        file.seek(begin)
        data = file.read(limit_bytes)
    end = data.rfind(b"\n") + 1
    is_cut_off = len(data) == limit_bytes
    if is_cut_off and end == 0:
        got = f"a line longer than {limit_bytes} bytes"
        raise UserError(at=path.name, got=got, want="lines as nalar writes them")
    return data[:end], begin, is_cut_off


def _byte(file: BinaryIO, at: int) -> bytes:
    file.seek(at)
    return file.read(1)


def document(run: Run, name: str) -> dict[str, Any]:
    """A document of the run; empty where there is none that can be read."""
    with contextlib.suppress(UserError, NoSuchRunError, OSError):
        inside(run.path, name)
        return run.read_json(name)
    return {}
