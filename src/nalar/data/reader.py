"""A source's records from any of them on, wherever they lie, and what tells one state of a source from another."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nalar.config import UserError
from nalar.data.config import DatasetSource, FileSource, RecordSource
from nalar.data.files import CorpusFile, files_of, lacking
from nalar.data.records import Record, checked, missing, reader


class Reader(Protocol):
    """One source, opened."""

    @property
    def source(self) -> RecordSource: ...

    @property
    def where(self) -> str:
        """As the user named it."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its documents, as JSON: settings, and names, sizes and times of files."""
        ...

    @property
    def size_bytes(self) -> int | None:
        """Of all its files; None where nobody knows before the end."""
        ...

    def records(self, file: int, last: int) -> Iterator[tuple[int, Record]]:
        """Records after the `last` of a file, each with its file's number."""
        ...

    def place(self, file: int, number: int) -> str:
        """Where a record stands, for people."""
        ...


def open_source(source: FileSource | DatasetSource) -> Reader:
    """UserError where a file, a right, a package or the dataset is missing."""
    if isinstance(source, FileSource):
        return FileReader(source, tuple(files_of(source)))
    return DatasetReader(source, _stream(source))


@dataclass(frozen=True)
class FileReader:
    source: FileSource
    files: tuple[CorpusFile, ...]

    @property
    def where(self) -> str:
        return self.source.where

    @property
    def identity(self) -> dict[str, Any]:
        files = [(str(f.path.absolute()), f.format, f.size_bytes, f.mtime_ns) for f in self.files]
        return _settings(self.source) | {"separator": self.source.separator, "files": files}

    @property
    def size_bytes(self) -> int | None:
        if any(file.is_gzip for file in self.files):  # it is not known how much comes out of it
            return None
        return sum(file.size_bytes for file in self.files)

    def records(self, file: int, last: int) -> Iterator[tuple[int, Record]]:
        for number in range(file, len(self.files)):
            here = self.files[number]
            read = reader(
                here,
                field=self.source.content_field,
                content=self.source.content,
                separator=self.source.separator,
            )
            for record in read(here, last if number == file else 0):
                yield number, record

    def place(self, file: int, number: int) -> str:
        here = self.files[file]
        noun = {"text": "part", "jsonl": "line", "parquet": "row"}[here.format]
        return f"{here.path}, {noun} {number}"


@dataclass(frozen=True)
class DatasetReader:
    source: DatasetSource
    stream: Any
    """An IterableDataset."""

    @property
    def where(self) -> str:
        return self.source.where

    @property
    def identity(self) -> dict[str, Any]:
        source = self.source
        settings = {"id": source.id, "subset": source.subset, "split": source.split}
        return _settings(source) | settings | {"revision": source.revision} | _on_disk(source.id)

    @property
    def size_bytes(self) -> int | None:
        return None

    def records(self, file: int, last: int) -> Iterator[tuple[int, Record]]:
        field, content = self.source.content_field, self.source.content
        try:
            for number, row in enumerate(self.stream.skip(last), start=last + 1):
                if field in row:
                    yield 0, checked(number, 0, row[field], content)
                else:
                    yield 0, Record(number, 0, fault=missing(field))
        except Exception as error:  # whatever the many readers behind it raise
            raise _unreadable(self.source, error) from error

    def place(self, file: int, number: int) -> str:
        return f"{self.where}, record {number}"


def _settings(source: FileSource | DatasetSource) -> dict[str, Any]:
    return {
        "kind": source.kind,
        "content": source.content,
        "field": source.content_field,
        "max_records": source.max_records,
    }


def _stream(source: DatasetSource) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise lacking("datasets", source.where) from error
    datasets.disable_progress_bars()  # our own display shows where it is
    try:
        return datasets.load_dataset(
            source.id,
            source.subset,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
    except Exception as error:  # each kind of dataset fails in its own way
        raise _unreadable(source, error) from error


def _unreadable(source: DatasetSource, error: Exception) -> UserError:
    return UserError(
        at=source.where,
        got=f"{type(error).__name__}: {error}",
        want="a dataset that can be read",
        hint="check id, subset, split and the network; what is in the cache already is kept",
    )


def _on_disk(name: str) -> dict[str, Any]:
    """Of a dataset that is a folder, its files."""
    root = Path(name).expanduser()
    found = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else []
    return {"files": [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in found]}
