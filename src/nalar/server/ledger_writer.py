"""Rows from many requests at once, each on the disk before its answer ends, by few commits.

A commit waits for the disk. Rows that come meanwhile are written together by the next one, so the disk sets how long a
row waits and not how many a second there can be.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from nalar.server.ledger import Ledger, LedgerError, Row, RowError

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""How long requests are refused after a row could not be kept, until one is let through to see."""

T = TypeVar("T")
_Waiting = tuple[Row, "asyncio.Future[None]"]


class LedgerWriter:
    """Appends to one ledger from one event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="ledger-reader")
        self._waiting: list[_Waiting] = []
        self._commits: asyncio.Task[None] | None = None
        self._failed_s: float | None = None

    async def add(self, row: Row) -> None:
        """Returns once the row is on the disk. A caller that is cancelled has its row written all the same.

        LedgerError where it cannot be kept: the answer is not to be given then. RowError where it cannot stand there.
        """
        kept = asyncio.get_running_loop().create_future()
        self._waiting.append((row, kept))
        if self._commits is None:
            self._commits = asyncio.create_task(self._commit_all())
        await kept

    @property
    def refuse_for_s(self) -> float:
        """Seconds for which no request is to be taken, since the last row could not be kept. 0: they may come."""
        if self._failed_s is None:
            return 0.0
        return max(self._failed_s + RETRY_S - time.monotonic(), 0.0)

    async def read(self, question: Callable[[Ledger], T]) -> T:
        """What a question gives: beside the loop, one at a time, on a connection that no row waits for."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, question, self.ledger)

    async def close(self) -> None:
        """Write what waits, and close the ledger."""
        while self._commits is not None:
            await asyncio.wait([self._commits])
        self._thread.shutdown()
        self._reader.shutdown()
        self.ledger.close()

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                rows = [row for row, _ in group]
                errors = await loop.run_in_executor(self._thread, self._write, rows)
                _tell(group, errors)
        finally:
            self._commits = None

    def _write(self, rows: Sequence[Row]) -> list[Exception | None]:
        """In the thread. Why each row is not in the ledger; None where it is."""
        try:
            self._add(rows)
        except RowError as error:
            if len(rows) == 1:
                return [error]
            # One that cannot stand there must not take the others with it.
            return [outcome for row in rows for outcome in self._write([row])]
        except Exception as error:
            if not isinstance(error, LedgerError) or self._failed_s is None:
                log.error("rows cannot be kept, and no request is answered: %s", error)
            self._failed_s = time.monotonic()
            return [error] * len(rows)
        return [None] * len(rows)

    def _add(self, rows: Sequence[Row]) -> None:
        self.ledger.add(rows)
        if self._failed_s is not None:
            log.warning("rows are kept again")
            self._failed_s = None


def _tell(group: Sequence[_Waiting], errors: Sequence[Exception | None]) -> None:
    for (_, kept), error in zip(group, errors, strict=True):
        if kept.done():  # its caller was cancelled
            continue
        if error is None:
            kept.set_result(None)
        else:
            kept.set_exception(error)
