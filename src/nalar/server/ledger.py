"""The ledger: one row a request in an SQLite file that only grows, by which usage is billed and budgets hold.

A row that `add` has returned for is on the disk, through SIGKILL and a power cut too (WAL, synchronous=FULL). Triggers
refuse every change of a row that stands there, whoever asks. Costs are whole picodollars, so that sums are exact.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Literal, get_args

from nalar.config import UserError
from nalar.disk import only_writer
from nalar.server.prices_config import picodollars, usd

SCHEMA_VERSION = 1
APPLICATION_ID = 0x6E616C72
"""`nalr`, where SQLite has a place for whose file it is."""
BUSY_S = 5.0
"""How long a statement waits for another program that has the file locked."""

By = Literal["key", "day", "model"]
GROUPS: tuple[By, ...] = get_args(By)
_COLUMN = {
    "key": "key_id",
    "day": "strftime('%Y-%m-%d', time_s, 'unixepoch')",
    "model": "model",
}

_SCHEMA = f"""
CREATE TABLE requests (
    request_id TEXT NOT NULL UNIQUE,
    time_s REAL NOT NULL,
    key_id TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    model TEXT NOT NULL,
    weight_version TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL CHECK (prompt_tokens >= 0),
    cached_tokens INTEGER NOT NULL CHECK (cached_tokens BETWEEN 0 AND prompt_tokens),
    reasoning_tokens INTEGER NOT NULL CHECK (reasoning_tokens BETWEEN 0 AND completion_tokens),
    completion_tokens INTEGER NOT NULL CHECK (completion_tokens >= 0),
    queue_s REAL NOT NULL,
    first_token_s REAL,
    total_s REAL NOT NULL,
    finish_reason TEXT,
    status INTEGER NOT NULL,
    cost_picodollars INTEGER CHECK (cost_picodollars >= 0),
    verdict TEXT
) STRICT;
CREATE INDEX requests_by_time ON requests (time_s);
CREATE TRIGGER requests_keep_values BEFORE UPDATE ON requests
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER requests_keep_rows BEFORE DELETE ON requests
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
-- INSERT OR REPLACE deletes without asking the trigger above.
CREATE TRIGGER requests_replace_none BEFORE INSERT ON requests
    WHEN EXISTS (SELECT 1 FROM requests WHERE request_id = NEW.request_id OR rowid = NEW.rowid)
    BEGIN SELECT RAISE(ABORT, 'this request is in the ledger'); END;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


class LedgerError(UserError):
    """The ledger cannot be read, or a row cannot be kept: a full disk, a missing right, a damaged file."""


class RowError(ValueError):
    """A row that cannot stand in any ledger: its request is there already, or its counts contradict each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request that was answered, cut short or refused by the policy. Holds nothing of what was said."""

    request_id: str
    time_s: float
    """When it was admitted, in seconds since 1970: the day and the month that it counts for."""
    key_id: str
    """Empty where the server asks for no key."""
    endpoint: str
    """Such as `/v1/chat/completions`."""
    model: str
    """The name that it is served under."""
    weight_version: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, those that were in the cache."""
    reasoning_tokens: int = 0
    """Of the completion, those of the thought."""
    completion_tokens: int = 0
    queue_s: float = 0.0
    """From its arrival until the model began with it."""
    first_token_s: float | None = None
    """From its arrival, as is `total_s`. None: there was no token."""
    total_s: float = 0.0
    finish_reason: str | None = None
    status: int = 200
    """Of HTTP, or of the error that ended a stream; 499 where the client went away."""
    cost_usd: float | None = None
    """None: the server had no prices. It adds nothing to a sum."""
    verdict: str | None = None
    """Of the policy, as `Verdict.label` gives it. None: nothing was found, or nobody looked."""


_FIELDS = [field.name for field in fields(Row) if field.name != "cost_usd"]
_NAMES = [*_FIELDS, "cost_picodollars"]
_fields_of = attrgetter(*_FIELDS)
_INSERT = f"INSERT INTO requests ({', '.join(_NAMES)}) VALUES ({', '.join('?' * len(_NAMES))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """What the rows of one group add up to. A name is None where the sum is over all of its kind."""

    key_id: str | None = None
    day: str | None = None
    """In UTC, such as `2026-11-29`."""
    model: str | None = None
    num_requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_picodollars: int

    @property
    def cost_usd(self) -> float:
        return usd(self.cost_picodollars)


class Ledger:
    """One file, written by one process at a time. Methods may be called from any thread; queries do not stop `add`."""

    def __init__(self, path: Path, writing: sqlite3.Connection | None, held: ExitStack) -> None:
        self.path = path
        self._writing, self._held = writing, held
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> "Ledger":
        """The ledger at `path`, made where there is none. What a kill left unfinished is undone.

        LedgerError where the file is something else, of another version, damaged, or cannot be written; BusyError
        where another server writes it. read_only: beside a server that writes it.
        """
        if path.is_dir() or (read_only and not path.exists()):
            got = "a folder" if path.is_dir() else "no such file"
            raise LedgerError(at=str(path), got=got, want="the ledger of a server")
        with ExitStack() as held, _in_our_words(path):
            writing = None
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = path.with_name(f"{path.name}.lock")
                lock.touch()  # not the file itself: closing it would give up SQLite's own locks
                held.enter_context(only_writer(lock))
                writing = sqlite3.connect(
                    path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
                )
                held.callback(writing.close)
                _prepare(writing, path)
            ledger = cls(path, writing, held.pop_all())
        with ledger._reading() as reading:
            _check_version(reading, path)
        return ledger

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows, all or none. Where it returns they are on the disk.

        RowError where one of them cannot stand there, LedgerError where the disk does not take them.
        """
        if self._writing is None:
            raise LedgerError(
                at=str(self.path), got="a row", want="none: the ledger is open for reading"
            )
        values = [_values(row) for row in rows]
        with self._lock, _in_our_words(self.path):
            self._writing.execute("BEGIN IMMEDIATE")
            try:
                self._writing.executemany(_INSERT, values)
                self._writing.execute("COMMIT")
            except BaseException:
                if self._writing.in_transaction:
                    self._writing.execute("ROLLBACK")
                raise

    def sums(
        self,
        by: Iterable[By] = (),
        since_s: float | None = None,
        until_s: float | None = None,
        key_id: str | None = None,
    ) -> list[Sum]:
        """Rows of since_s <= time_s < until_s added up, a sum for each key, day and model as asked, in that order.

        key_id: of this key alone. Without groups there is one sum, of nothing where there are no rows.
        """
        names = [name for name in GROUPS if name in set(by)]
        groups = [_COLUMN[name] for name in names]
        conditions = {
            "time_s >= ?": since_s,
            "time_s < ?": until_s,
            "key_id = ?": key_id,
        }
        asked = {what: value for what, value in conditions.items() if value is not None}
        where = f"WHERE {' AND '.join(asked)}" if asked else ""
        grouped = f"GROUP BY {', '.join(groups)} ORDER BY {', '.join(groups)}" if groups else ""
        totals = ", ".join(
            f"COALESCE(SUM({name}), 0)"
            for name in (
                "prompt_tokens",
                "cached_tokens",
                "completion_tokens",
                "reasoning_tokens",
                # In two parts: a sum of nine million dollars is more than 64 bits of picodollars.
                "cost_picodollars / 1000000000",
                "cost_picodollars % 1000000000",
            )
        )
        query = f"SELECT {', '.join([*groups, 'COUNT(*)', totals])} FROM requests {where} {grouped}"
        with self._reading() as reading:
            found = reading.execute(query, list(asked.values())).fetchall()
        return [_sum(names, values) for values in found]

    def spent(self, month: str) -> dict[str, int]:
        """Picodollars by key, in a month of UTC, such as `2026-11`."""
        found = self.sums(("key",), *bounds_s(month))
        return {one.key_id or "": one.cost_picodollars for one in found}

    def close(self) -> None:
        with self._lock:
            self._held.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, so that a long query holds up no row."""
        with _in_our_words(self.path):
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            reading = sqlite3.connect(uri, uri=True, timeout=BUSY_S)
            try:
                yield reading
            finally:
                reading.close()


def month_of(time_s: float) -> str:
    """Such as `2026-11`, in UTC."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m")


def bounds_s(month: str) -> tuple[float, float]:
    """When a month of UTC begins, and when the next one does."""
    year, number = map(int, month.split("-"))
    first = datetime(year, number, 1, tzinfo=UTC)
    after = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return first.timestamp(), after.timestamp()


def _values(row: Row) -> tuple[object, ...]:
    cost = None if row.cost_usd is None else picodollars(row.cost_usd)
    return (*_fields_of(row), cost)


def _sum(names: Sequence[str], values: Sequence[int]) -> Sum:
    """Of a result's columns: the groups, the count, four kinds of tokens, whole and broken thousandths of dollars."""
    n = len(names)
    named = {("key_id" if name == "key" else name): values[i] for i, name in enumerate(names)}
    return Sum(
        **named,  # type: ignore[arg-type]
        num_requests=values[n],
        prompt_tokens=values[n + 1],
        cached_tokens=values[n + 2],
        completion_tokens=values[n + 3],
        reasoning_tokens=values[n + 4],
        cost_picodollars=values[n + 5] * 10**9 + values[n + 6],
    )


def _prepare(writing: sqlite3.Connection, path: Path) -> None:
    """Make the tables where the file is new, and have commits be on the disk before they return."""
    is_new = not writing.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if not is_new:
        _check_version(writing, path)
    (journal,) = writing.execute("PRAGMA journal_mode = WAL").fetchone()
    if journal != "wal":
        raise LedgerError(
            at=str(path),
            got="a file system on which SQLite cannot keep a write-ahead log",
            want="a local disk",
        )
    writing.execute("PRAGMA synchronous = FULL")
    if is_new:
        writing.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if owner != APPLICATION_ID:
        raise LedgerError(
            at=str(path), got="an SQLite file of another program", want="a ledger of nalar's"
        )
    if version != SCHEMA_VERSION:
        raise LedgerError(
            at=str(path),
            got=f"version {version} of the ledger",
            want=f"version {SCHEMA_VERSION}",
            hint="use the nalar that wrote it, or begin another file: old ones stay readable by theirs"
            if version < SCHEMA_VERSION
            else "a newer nalar wrote it: install that one",
        )
    connection.execute("SELECT cost_picodollars FROM requests LIMIT 1").fetchall()  # is it whole?


_HINTS: dict[int, tuple[str, str, str | None]] = {
    sqlite3.SQLITE_FULL: ("a full disk", "room to write", "free some space"),
    sqlite3.SQLITE_IOERR: ("a disk that fails", "one that can be written", "see the system's log"),
    sqlite3.SQLITE_READONLY: (
        "a file that cannot be written",
        "one that can",
        "check its permissions and those of its folder",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "a file that cannot be opened",
        "a place that can be read and written",
        "check its permissions and those of its folder",
    ),
    sqlite3.SQLITE_BUSY: (
        "a file that another program holds locked",
        "one that is free",
        "end what else has it open",
    ),
    sqlite3.SQLITE_CORRUPT: (
        "a damaged file",
        "a ledger as it was written",
        "put it aside; `sqlite3 FILE .recover` reads what is left",
    ),
    sqlite3.SQLITE_NOTADB: (
        "a file that is no ledger",
        "one of nalar's, or a new name",
        None,
    ),
}


@contextmanager
def _in_our_words(path: Path) -> Iterator[None]:
    """Turn what SQLite says into errors that say what to do."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise RowError(f"{path}: {error}") from error
    except sqlite3.Error as error:
        # The low byte is the kind. Errors of the module's own, such as a closed connection, have none.
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind not in _HINTS:
            raise
        got, want, hint = _HINTS[kind]
        raise LedgerError(at=str(path), got=f"{got} ({error})", want=want, hint=hint) from error
    except OSError as error:
        raise LedgerError(
            at=str(path),
            got=error.strerror or str(error),
            want="a place that can be read and written",
        ) from error
