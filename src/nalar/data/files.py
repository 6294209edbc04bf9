"""Which files a source means, and whether they are there. Looks at names, sizes and times; opens nothing, no torch."""

import glob
import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nalar.config import ConfigError, UserError
from nalar.data.config import DataConfig, DatasetSource, FileSource, Format

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


def refuse_no_source(data: DataConfig) -> None:
    if not data.sources:
        raise ConfigError(
            at="data.sources",
            got="no source",
            want="at least one: a file, a folder, a glob, hf:ID or procedural",
        )


def refuse_missing(data: DataConfig) -> None:
    """UserError for what can be known to be missing before anything is read: sources, files, packages."""
    refuse_no_source(data)
    for source in data.sources:
        if isinstance(source, DatasetSource):
            _refuse_without("datasets", source.where)
        elif isinstance(source, FileSource):
            formats = {file.format for file in files_of(source)}
            if "parquet" in formats:
                _refuse_without("pyarrow", source.where)


def _refuse_without(package: str, at: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise lacking(package, at)


def lacking(package: str, at: str) -> UserError:
    return UserError(
        at=at,
        got=f"no package {package}",
        want="it, for a source of this kind",
        hint="pip install 'nalar[data]'",
    )


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
