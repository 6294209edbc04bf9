"""Makes a source's cache: reads, tokenises, writes shard after shard. What was cut off goes on where it was."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nalar.data.cache import (
    Ids,
    Index,
    Shard,
    TokenCache,
    cache_name,
    read_index,
    shard_path,
    write_index,
)
from nalar.data.dialogue import encode_dialogue
from nalar.data.reader import Reader
from nalar.data.records import EMPTY, Record
from nalar.data.tokenizer import Tokenizer
from nalar.disk import only_writer, write_atomic

SHARD_TOKENS = 2**26
DOCUMENT_TOKENS = 2**22
"""A longer document is kept in pieces of about this many ids; the last id of one is the first of the next."""
BATCH_RECORDS = 256
BATCH_BYTES = 2**22
HOPELESS_RECORDS = 10_000
"""After so many without a good one the rest is not looked at."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Building:
    """How far a cache is."""

    where: str
    documents: int
    tokens: int
    done_frac: float | None
    """Of what there is to read. None: not known."""


def cached(
    reader: Reader,
    tokenizer: Tokenizer,
    root: Path,
    *,
    max_bad_frac: float,
    on_progress: Callable[[Building], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    shard_tokens: int = SHARD_TOKENS,
    document_tokens: int = DOCUMENT_TOKENS,
) -> TokenCache | None:
    """The cache of a source, made under `root` where it is not there yet. None: told to stop, what is done is kept.

    Stops, kills and the size of shards change nothing about the documents. UserError for a source without a document
    or with too many bad records.
    """
    folder = root / cache_name(reader.where, reader.identity, tokenizer.fingerprint)
    index = read_index(folder)
    if index is None or not index.is_complete:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with only_writer(folder):
                shards = _Shards(folder, reader, tokenizer, document_tokens)
                if not _build(shards, reader, tokenizer, shard_tokens, on_progress, should_stop):
                    return None
                index = shards.index
        finally:
            with contextlib.suppress(OSError):  # only where nothing came of it
                folder.rmdir()
    index.tally.refuse(reader.where, reader.source.content_field, max_bad_frac)
    return TokenCache(folder, index)


def _build(
    shards: "_Shards",
    reader: Reader,
    tokenizer: Tokenizer,
    shard_tokens: int,
    on_progress: Callable[[Building], None],
    should_stop: Callable[[], bool],
) -> bool:
    """False where it was told to stop."""
    size_bytes = reader.size_bytes
    for batch in _batches(_records(reader, shards.index)):
        for (file, record), (ids, mask) in zip(batch, _encoded(tokenizer, batch), strict=True):
            shards.take(file, record, ids, mask)
        documents, tokens = shards.documents, shards.tokens
        if not documents and shards.index.tally.records >= HOPELESS_RECORDS:
            shards.index.tally.refuse(reader.where, reader.source.content_field, 0.0)
        if shards.waiting >= shard_tokens:
            shards.flush()
        done = min(1.0, shards.read_bytes / size_bytes) if size_bytes else None
        on_progress(Building(reader.where, documents, tokens, done))
        if should_stop():
            shards.flush()
            return False
    shards.finish()
    return True


def _records(reader: Reader, index: Index) -> Iterator[tuple[int, Record]]:
    """All that are not in a shard yet, up to the number that the source is limited to."""
    limit, records = reader.source.max_records, index.tally.records
    if limit is not None and records >= limit:
        return
    for file, record in reader.records(index.file, index.record):
        yield file, record
        records += record.is_last_part
        if records == limit:
            return


def _batches(records: Iterator[tuple[int, Record]]) -> Iterator[list[tuple[int, Record]]]:
    batch, size = list[tuple[int, Record]](), 0
    for item in records:
        batch.append(item)
        size += len(item[1].content or "")
        if len(batch) == BATCH_RECORDS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    tokenizer: Tokenizer, batch: Sequence[tuple[int, Record]]
) -> list[tuple[list[int], list[bool] | None]]:
    """Ids of each record, and which of them count; none of a fault. Text never becomes a special id."""
    contents = [record.content for _, record in batch if not record.fault]
    texts = iter(tokenizer.encode_batch([c for c in contents if isinstance(c, str)]))
    found: list[tuple[list[int], list[bool] | None]] = []
    for _, record in batch:
        if record.fault:
            found.append(([], None))
        elif isinstance(record.content, str):
            found.append((next(texts), None))
        else:
            found.append(encode_dialogue(tokenizer, record.content))
    return found


class _Shards:
    """Takes records, one after another, and writes the documents that they make."""

    def __init__(
        self, folder: Path, reader: Reader, tokenizer: Tokenizer, document_tokens: int
    ) -> None:
        self.folder, self.reader, self.document_tokens = folder, reader, document_tokens
        has_mask = reader.source.content == "dialogue"
        self.index = read_index(folder) or Index(
            identity=reader.identity,
            tokenizer=tokenizer.fingerprint,
            dtype="uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
            has_mask=has_mask,
        )
        self.closing = [] if has_mask else [tokenizer.end_id]  # a dialogue's last turn is closed
        self.read_bytes = self.index.read_bytes
        self.waiting = 0
        """Tokens that are in no shard yet."""
        self._documents: list[Ids] = []
        self._masks: list[Mask] = []
        self._open: list[Ids] = []
        if self.index.is_open:
            last = len(self.index.shards) - 1
            self._open = [np.load(shard_path(folder, "ids", last), mmap_mode="r")[-1:]]

    @property
    def documents(self) -> int:
        return self.index.documents + len(self._documents)

    @property
    def tokens(self) -> int:
        return self.index.tokens + self.waiting

    def take(self, file: int, record: Record, ids: list[int], mask: list[bool] | None) -> None:
        """A part of a document, the whole of one, or a fault, which undoes the parts before it."""
        self.read_bytes += record.size_bytes
        if record.fault:
            self._fail(file, record, record.fault)
            return
        self._open.append(np.array(ids, dtype=self.index.dtype))
        if record.is_last_part:
            self._open.append(np.array(self.closing, dtype=self.index.dtype))
        length = sum(map(len, self._open))
        if record.is_last_part and length < 2:  # nothing that could be a target
            self._fail(file, record, EMPTY)
        elif record.is_last_part or length >= self.document_tokens:
            self._keep(np.concatenate(self._open), mask)
            self._open = [] if record.is_last_part else [self._documents[-1][-1:]]
            self._done(file, record)

    def flush(self) -> None:
        """Write what waits as a shard. The index comes last, so a kill leaves at most files that it does not name."""
        if self._documents:
            number = len(self.index.shards)
            ends = np.cumsum([len(ids) for ids in self._documents], dtype=np.int64)
            self._write("ids", number, np.concatenate(self._documents))
            self._write("ends", number, ends)
            if self.index.has_mask:
                self._write("counted", number, np.concatenate(self._masks))
            self.index.shards.append(Shard(documents=len(ends), tokens=int(ends[-1])))
            self._documents, self._masks, self.waiting = [], [], 0
        write_index(self.folder, self.index)

    def finish(self) -> None:
        self.flush()
        if self.index.shards:
            self.index.digest = TokenCache(self.folder, self.index).digest()
        self.index.is_complete = True
        write_index(self.folder, self.index)

    def _keep(self, ids: Ids, mask: list[bool] | None) -> None:
        self._documents.append(ids)
        self.waiting += len(ids)
        if mask is not None:
            self._masks.append(np.array(mask))

    def _fail(self, file: int, record: Record, why: str) -> None:
        place = self.reader.place(file, record.number)
        self.index.tally.add(why, place)
        self._open = []
        self._done(file, record)

    def _done(self, file: int, record: Record) -> None:
        """From here on a resumed build may begin: nothing before this is needed again."""
        self.index.file, self.index.record = file, record.number
        self.index.is_open = not record.is_last_part
        self.index.tally.records += record.is_last_part
        self.index.read_bytes = self.read_bytes

    def _write(self, part: str, number: int, numbers: npt.NDArray[Any]) -> None:
        file = io.BytesIO()
        np.save(file, numbers, allow_pickle=False)
        write_atomic(shard_path(self.folder, part, number), file.getvalue())
