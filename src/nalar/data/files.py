"""Which files a source means. Looks at names, sizes and times, and opens nothing. Imports no torch."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nalar.config import UserError
from nalar.data.config import FileSource, Format

SUFFIXES: Mapping[str, Format] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
GZIP = ".gz"
_KNOWN = ", ".join(SUFFIXES)


@dataclass(frozen=True)
class CorpusFile:
    """A file of a source as it was found."""

    path: Path
    format: Format
    size_bytes: int
    mtime_ns: int

    @property
    def is_gzip(self) -> bool:
        return self.path.suffix == GZIP


def files_of(source: FileSource) -> list[CorpusFile]:
    """All files of a source, ordered by path. UserError where there are none, or none that can be read.

    Below a folder, hidden files and (unless the source names a format) files of other suffixes are left out.
    """
    path = _expanded(source.path)
    if path.is_dir():
        found = [p for p in _below(path) if source.format or _format_of(p)]
        want = "a folder with files of a known kind: " + _KNOWN
    elif path.exists():
        found, want = [path], ""
    else:
        # pathlib's glob takes no absolute pattern.
        matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
        found = sorted(p for p in matches if p.is_file())
        want = f"a file, a folder or a glob; a relative one begins at {Path.cwd()}"
    if not found:
        got = "nothing of a known kind in it" if path.is_dir() else "no such file"
        raise UserError(at=source.path, got=got, want=want)
    files = [_file(p, source.format) for p in found]
    if not any(file.size_bytes for file in files):
        raise UserError(at=source.path, got="nothing but empty files", want="a corpus")
    _refuse_foreign(source, {file.format for file in files})
    return files


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(at=text, got="no such user", want="a path") from error


def _below(folder: Path) -> Iterator[Path]:
    """Files below a folder, hidden ones and hidden folders apart, in an order that every machine agrees on."""
    found = []
    for root, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return iter(sorted(found, key=lambda p: p.as_posix()))


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(
        at=str(error.filename), got=error.strerror or str(error), want="a folder that can be read"
    ) from error


def _format_of(path: Path) -> Format | None:
    plain = path.with_suffix("") if path.suffix == GZIP else path
    known = SUFFIXES.get(plain.suffix.lower())
    return None if known == "parquet" and path.suffix == GZIP else known


def _file(path: Path, named: Format | None) -> CorpusFile:
    chosen = named or _format_of(path)
    if chosen is None:
        raise UserError(
            at=str(path),
            got=f"the suffix {path.suffix!r}" if path.suffix else "no suffix",
            want=f"one of {_KNOWN}; the first five may end in {GZIP}",
            hint=f"say what it is: '{path},format=text' (or jsonl, parquet)",
        )
    if not os.access(path, os.R_OK):
        raise UserError(at=str(path), got="a file without the right to read it", want="to read it")
    stat = path.stat()
    return CorpusFile(path, chosen, stat.st_size, stat.st_mtime_ns)


def _refuse_foreign(source: FileSource, formats: Iterable[Format]) -> None:
    """UserError for settings that none of the files would heed."""
    if source.separator is not None and "text" not in formats:
        raise UserError(
            at=f"{source.path}: separator", got="no text file", want="text files to separate"
        )
    if source.content == "dialogue" and "text" in formats:
        raise UserError(
            at=f"{source.path}: content=dialogue", got="text files", want="JSONL or Parquet"
        )
    if source.field is not None and set(formats) == {"text"}:
        raise UserError(
            at=f"{source.path}: field", got="text files, which have no fields", want="no field"
        )
