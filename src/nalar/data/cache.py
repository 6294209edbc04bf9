"""A source as token ids on disk: shards of .npy files, mapped into memory, and an index that says what is whole.

`ids-N.npy` holds the documents of a shard one after another, `ends-N.npy` where each ends, `counted-N.npy` (dialogues
only) which ids a loss may count. No document lies in two shards.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from nalar.config import UserError
from nalar.data.tally import Tally
from nalar.disk import encode, write_atomic

INDEX = "index.json"
FORM = 1
"""Counts the forms that shards have had; caches of another form are not looked at."""
_HASHED = 2**22
"""Ids that are hashed at once."""

Ids = npt.NDArray[np.integer[Any]]


class Shard(BaseModel):
    """Files that are whole."""

    documents: int
    tokens: int


class Index(BaseModel):
    """`index.json`: how far a cache is."""

    identity: dict[str, Any]
    """Of the source, as the reader gives it."""
    tokenizer: str
    """Fingerprint."""
    dtype: str
    has_mask: bool
    shards: list[Shard] = []
    file: int = 0
    record: int = 0
    """The last record that is in a shard, and its file."""
    read_bytes: float = 0.0
    tally: Tally = Tally()
    """Of what was read so far."""
    is_open: bool = False
    """The last document of the last shard goes on in the next one."""
    is_complete: bool = False
    digest: str | None = None
    """Of the documents; there once the cache is complete."""

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)


def cache_name(where: str, identity: dict[str, Any], tokenizer: str) -> str:
    """The folder of a source under a tokenizer: a word for people, and a hash of all that decides the ids."""
    key = encode({"form": FORM, "source": identity, "tokenizer": tokenizer})
    word = "".join(c if c.isascii() and c.isalnum() else "-" for c in where)[-40:].strip("-")
    return f"{word}-{hashlib.sha256(key).hexdigest()[:24]}"


def read_index(folder: Path) -> Index | None:
    """None where there is no cache yet; UserError where its index is not one."""
    path = folder / INDEX
    try:
        return Index.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise damaged(path, "a broken index") from error


def write_index(folder: Path, index: Index) -> None:
    write_atomic(folder / INDEX, index.model_dump_json(indent=1).encode())


def shard_path(folder: Path, part: str, number: int) -> Path:
    """part: ids, ends or counted."""
    return folder / f"{part}-{number:05d}.npy"


def damaged(path: Path, got: str) -> UserError:
    return UserError(
        at=str(path),
        got=got,
        want="a cache as nalar wrote it",
        hint=f"delete {path.parent}: it is made again",
    )


class TokenCache:
    """The shards of an index, open for reading. Documents are numbered as they stand in the source."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.index = folder, index
        numbers = range(len(index.shards))
        self._ids = [self._map("ids", n, index.shards[n].tokens) for n in numbers]
        self._counted = [
            self._map("counted", n, index.shards[n].tokens) for n in numbers if index.has_mask
        ]
        self._ends = [
            np.concatenate([[0], self._map("ends", n, index.shards[n].documents)]) for n in numbers
        ]
        documents = [shard.documents for shard in index.shards]
        self._first_S = np.cumsum([0, *documents])[:-1]
        self.lengths_D: npt.NDArray[np.int64] = np.concatenate(
            [np.diff(ends).astype(np.int64) for ends in self._ends]
        )
        """Ids of each document, the closing <|end|> included."""

    def ids(self, document: int, start: int, stop: int) -> Ids:
        """A stretch of a document."""
        found: Ids = self._stretch(self._ids, document, start, stop)
        return found

    def counted(self, document: int, start: int, stop: int) -> npt.NDArray[np.bool_] | None:
        """Which ids of a stretch a loss may count, as targets. None: all, since these are no dialogues."""
        return self._stretch(self._counted, document, start, stop) if self._counted else None

    def digest(self) -> str:
        """A hash of all documents as the files hold them, the same however they are spread over shards."""
        found = hashlib.blake2b(digest_size=16)
        for ids_N in self._ids:
            for start in range(0, len(ids_N), _HASHED):
                found.update(ids_N[start : start + _HASHED].astype("<u4").tobytes())
        found.update(self.lengths_D.astype("<i8").tobytes())
        return found.hexdigest()

    def _stretch(self, parts: list[Any], document: int, start: int, stop: int) -> Any:
        shard = int(np.searchsorted(self._first_S, document, side="right")) - 1
        begin = int(self._ends[shard][document - int(self._first_S[shard])])
        return parts[shard][begin + start : begin + stop]

    def _map(self, part: str, number: int, size: int) -> Any:
        path = shard_path(self.folder, part, number)
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise damaged(path, f"a file that cannot be read ({error})") from error
        if found.shape != (size,):
            raise damaged(path, f"{found.shape} numbers instead of {size}")
        return found
