"""What stands in the files of a source, record by record. One that cannot be used says why, and is counted.

Every reader begins after any record that it gave before, so a cache that was cut off goes on where it was.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from nalar.config import UserError
from nalar.data.config import Content
from nalar.data.files import CorpusFile, lacking

BLOCK_BYTES = 2**20
"""Of a text file that are held at once: a longer document comes in parts of about this size."""
ROWS = 256
"""Of a Parquet file that are held at once."""

NOT_UTF8 = "not UTF-8"
EMPTY = "empty"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Read = Callable[[CorpusFile, int], Iterator["Record"]]


@dataclass(frozen=True, slots=True)
class Record:
    """A document, or a part of one; or a fault."""

    number: int
    """In its file, from 1: of the line, of the row, in a text file of the part."""
    size_bytes: float
    """What reading it took, of the file's size where that is known."""
    content: Any = None
    """A string, or a list of messages."""
    fault: str | None = None
    """Why the record is of no use."""
    is_last_part: bool = True
    """The document ends here. Parts before it come in the records before."""


def reader(file: CorpusFile, *, field: str, content: Content, separator: str | None) -> Read:
    """The function that reads such a file, called with the file and the number of the last record known."""
    if file.format == "text":
        return lambda file, last: _text(file, separator, last)
    read = _json_lines if file.format == "jsonl" else _parquet
    return lambda file, last: read(file, field, content, last)


def checked(number: int, size_bytes: float, value: object, content: Content) -> Record:
    """A record of a field's value, or of what is wrong with it."""
    if content == "dialogue":
        fault = dialogue_fault(value)
    elif not isinstance(value, str):
        fault = "a field that is no text"
    elif not value.strip():
        fault = EMPTY
    else:
        fault = None if _is_unicode(value) else NOT_UTF8
    return Record(number, size_bytes, None if fault else value, fault)


def dialogue_fault(value: object) -> str | None:
    """Why these messages cannot be learned from; None where they can."""
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        return "a field that is no list of messages"
    for message in value:
        if message.get("role") not in ("user", "assistant"):
            return "a role other than user and assistant"
        thought = message.get("reasoning_content")
        for text in (message.get("content"), "" if thought is None else thought):
            if not isinstance(text, str) or not _is_unicode(text):
                return "a message without text"
    if not any(message["role"] == "assistant" for message in value):
        return "no turn of the assistant"
    return None


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _open(file: CorpusFile) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file.path) if file.is_gzip else file.path.open("rb"))


def _blocks(file: CorpusFile, blocks: Callable[[BinaryIO], Iterator[bytes]]) -> Iterator[bytes]:
    """What `blocks` reads of a file. UserError that names it where it cannot be read to its end."""
    try:
        with _open(file) as stream:
            yield from blocks(stream)
    except (OSError, EOFError, zlib.error) as error:  # gzip's own errors are OSErrors
        got = f"a file that breaks off or cannot be read ({error})"
        raise UserError(at=str(file.path), got=got, want="a whole file") from error


def _text(file: CorpusFile, separator: str | None, last: int) -> Iterator[Record]:
    number, is_begun, is_bad = 0, False, False
    for part, is_last_part in _parts(file, separator):
        text, is_bad = ("", True) if is_bad else _decoded(part)
        if is_bad and not is_last_part:
            continue  # one fault a document, where it ends
        is_blank = is_last_part and not is_begun and not is_bad and not text.strip()
        if is_blank and separator:
            continue  # what stands between two separators in a row is no record
        number += 1
        if number > last:
            fault = NOT_UTF8 if is_bad else EMPTY if is_blank else None
            yield Record(number, len(part), text, fault, is_last_part)
        is_begun, is_bad = not is_last_part, False


def _decoded(part: bytes) -> tuple[str, bool]:
    try:
        return part.decode(), False
    except UnicodeDecodeError:
        return "", True


def _parts(file: CorpusFile, separator: str | None) -> Iterator[tuple[bytes, bool]]:
    """Pieces of documents, each with whether the document ends there. The separator is in none of them."""
    mark = separator.encode() if separator else None
    rest, is_first = b"", True
    for block in _blocks(file, lambda stream: iter(lambda: stream.read(BLOCK_BYTES), b"")):
        if is_first:
            block, is_first = block.removeprefix(BYTE_ORDER_MARK), False
        rest += block
        if mark:
            *whole, rest = rest.split(mark)
            yield from ((document, True) for document in whole)
        if len(rest) > BLOCK_BYTES:
            at = _cut(rest, len(rest) - len(mark or b" "))
            yield rest[:at], False
            rest = rest[at:]
    if rest or not mark:
        yield rest, True


def _cut(data: bytes, end: int) -> int:
    """Where to part data, at `end` or before: after a line, else between two characters."""
    line = data.rfind(b"\n", 0, end) + 1
    if line:
        return line
    while end > 1 and data[end] & 0xC0 == 0x80:  # within a character of UTF-8
        end -= 1
    return end


def _json_lines(file: CorpusFile, field: str, content: Content, last: int) -> Iterator[Record]:
    for number, line in enumerate(_blocks(file, iter), start=1):
        if number <= last:
            continue
        text, is_bad = _decoded(line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line)
        if is_bad:
            yield Record(number, len(line), fault=NOT_UTF8)
        elif text.strip():
            yield _of_object(number, len(line), _json(text), field, content)


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _of_object(
    number: int, size_bytes: float, found: object, field: str, content: Content
) -> Record:
    if not isinstance(found, dict):
        return Record(number, size_bytes, fault="no JSON object")
    if field not in found:
        return Record(number, size_bytes, fault=missing(field))
    return checked(number, size_bytes, found[field], content)


def missing(field: str) -> str:
    return f"no field {field!r}"


def _parquet(file: CorpusFile, field: str, content: Content, last: int) -> Iterator[Record]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise lacking("pyarrow", str(file.path)) from error
    try:
        with parquet.ParquetFile(file.path) as table:
            yield from _rows(table, file, field, content, last)
    except (OSError, arrow.ArrowException) as error:
        got = f"{type(error).__name__}: {error}"
        raise UserError(at=str(file.path), got=got, want="a whole Parquet file") from error


def _rows(
    table: Any, file: CorpusFile, field: str, content: Content, last: int
) -> Iterator[Record]:
    meta = table.metadata
    size_bytes = file.size_bytes / max(meta.num_rows, 1)
    if field not in table.schema_arrow.names:
        for number in range(last + 1, meta.num_rows + 1):
            yield Record(number, size_bytes, fault=missing(field))
        return
    group, number = 0, 0
    while group < meta.num_row_groups and number + meta.row_group(group).num_rows <= last:
        number += meta.row_group(group).num_rows
        group += 1
    groups = list(range(group, meta.num_row_groups))
    for batch in table.iter_batches(ROWS, row_groups=groups, columns=[field]) if groups else ():
        for value in batch.column(0).to_pylist():
            number += 1
            if number > last:
                yield checked(number, size_bytes, value, content)
