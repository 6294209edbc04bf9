"""Files that are never half-written.

Documents and folders are replaced whole: temporary name, fsync, rename; `mend_folder` clears away what a kill left of
one. Logs grow by one JSON line a record, and are cut back where a run goes back: what a kill left of a torn last line
is skipped on reading and cut off before the next append. Numbers that JSON lacks (nan, inf) become null.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nalar.config import UserError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EISDIR}
"""What file systems say that cannot flush a folder, or anything."""


class BusyError(UserError):
    """Another process is at work there."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission while writing `path` into a UserError."""
    try:
        yield
    except Exception as error:
        code = _errno_of(error)
        if code in _DISK_FULL:
            hint = "free some space; the last complete state is kept, --resume goes on from it"
            raise UserError(
                at=str(path), got="a full disk", want="room to write", hint=hint
            ) from error
        if code in _NO_RIGHT:
            raise UserError(
                at=str(path),
                got=str(error),
                want="a place that can be written to",
                hint="check its permissions, or choose another folder",
            ) from error
        raise


def _errno_of(error: Exception) -> int | None:
    """safetensors raises an error class of its own, with the number in its text: `... (os error 28)`."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """BusyError where another process is within this block for the same folder. A kill leaves nothing locked."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                at=str(folder),
                got="another process at work on it",
                want="one writer at a time",
                hint="wait for it, or stop it by Ctrl-C",
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data`, whole or not at all, through a power cut too. mode: its permissions, less the umask."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temp.unlink(missing_ok=True)  # one that a kill left would keep its own permissions
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            try:
                _write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            temp.replace(path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextlib.contextmanager
def replace_dir(path: Path) -> Iterator[Path]:
    """Fill the folder this yields: flushed, then renamed, it becomes `path` when the block ends.

    It vanishes where the block raises. What stands at `path` already is moved aside just before the rename: a kill
    between the two leaves it there, and `mend_folder` puts it back.
    """
    temp, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    with disk_errors(path):
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        try:
            yield temp
            for inner in [*temp.rglob("*"), temp]:
                sync(inner)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
            temp.rename(path)
        except BaseException:
            if old.exists() and not path.exists():  # between the two renames
                old.rename(path)
            shutil.rmtree(temp, ignore_errors=True)
            raise
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def remove_dir(path: Path) -> None:
    """Remove a folder. A kill on the way leaves no part of it under its name."""
    temp = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        shutil.rmtree(temp, ignore_errors=True)
        path.rename(temp)
        shutil.rmtree(temp)


def mend_folder(folder: Path) -> None:
    """Clear away what a killed writer left in a folder: what was unfinished goes, what was moved aside comes back."""
    with disk_errors(folder):
        for aside in [path for path in folder.glob(".*.old") if path.is_dir()]:
            path = aside.with_name(aside.name[1 : -len(".old")])
            if path.exists():
                shutil.rmtree(aside)
            else:
                aside.rename(path)
        for unfinished in [*folder.glob(".*.tmp")]:
            if unfinished.is_dir() and not unfinished.is_symlink():
                shutil.rmtree(unfinished)
            else:
                unfinished.unlink()


def append_line(path: Path, record: Mapping[str, Any], *, durable: bool = False) -> None:
    """Append one JSON line, after cutting off a torn one. It outlives a killed process; `durable`, a power cut too."""
    with disk_errors(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            end = _mend_tail(fd, path)
            try:
                _write_all(fd, encode(record) + b"\n")
            except OSError:
                os.ftruncate(fd, end)
                raise
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, without a torn last one; none where there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, start=1):
        record = decode(line)
        if record is not None:
            records.append(record)
        elif line and number < len(lines):
            got, want = "a line that is not a JSON object", "one JSON object a line"
            raise UserError(
                at=f"{path}, line {number}", got=got, want=want, hint="delete that line"
            )
    return records


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def lines_beyond(path: Path, size: int) -> list[dict[str, Any]]:
    """The records that a log gained after it was `size` bytes long; UserError where no line ended there."""
    if size_of(path) <= size:
        return []
    with path.open("rb") as file:
        file.seek(max(size - 1, 0))
        ends = file.read(1) == b"\n" if size else True
        rest = file.read()
    if not ends:
        raise UserError(
            at=f"{path}, byte {size}",
            got="the middle of a line",
            want="the end of the line that was the last when the run was saved",
            hint="the file was changed since: put it back as it was",
        )
    return [record for line in rest.split(b"\n") if (record := decode(line)) is not None]


def cut_back(path: Path, size: int) -> None:
    """Drop what a log gained after it was `size` bytes long."""
    if size_of(path) > size:
        with disk_errors(path):
            os.truncate(path, size)
            sync(path)


def encode(value: object, indent: int | None = None) -> bytes:
    """Strict JSON in UTF-8."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    # A lone surrogate (an argument that was not UTF-8) becomes its JSON escape, which reads back as it was.
    return text.encode("utf-8", "backslashreplace")


def finite(value: Any) -> Any:
    """None for a number that is not finite, however deep it lies."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def decode(line: bytes) -> dict[str, Any] | None:
    """The JSON object in these bytes; None where they are anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _mend_tail(fd: int, path: Path) -> int:
    """Make the file end after a whole line; returns where that is."""
    size = os.lseek(fd, 0, os.SEEK_END)
    if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
        return size
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if decode(data[whole:]) is not None:  # only its newline is missing: the record is kept
        return size + os.write(fd, b"\n")
    os.ftruncate(fd, whole)
    return whole


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk, where the file system knows how to."""
    with disk_errors(path):
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in _NO_FSYNC:
                raise
