"""Rows of many requests at once: none lost, each once, whatever is cancelled or killed."""

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from nalar.server import ledger_writer
from nalar.server.ledger import Ledger, LedgerError, Row, RowError
from nalar.server.ledger_writer import LedgerWriter

LOAD = Path(__file__).parent / "ledger_load.py"


def row(request_id, **values):
    return Row(
        request_id=str(request_id), time_s=1.8e9, key_id="a", endpoint="/", model="m", **values
    )


@pytest.fixture
def ledger(tmp_path):
    return Ledger.open(tmp_path / "ledger.db")


def ids(path):
    connection = sqlite3.connect(path)
    found = [name for (name,) in connection.execute("SELECT request_id FROM requests")]
    connection.close()
    return found


def test_rows_that_come_during_a_commit_share_the_next_one(ledger, monkeypatch):
    commits, add = [], ledger.add

    def counted(rows):
        commits.append(len(rows))
        add(rows)

    monkeypatch.setattr(ledger, "add", counted)

    async def main():
        writer = LedgerWriter(ledger)
        await asyncio.gather(*(writer.add(row(i)) for i in range(500)))
        await writer.close()

    asyncio.run(main())
    assert sorted(map(int, ids(ledger.path))) == list(range(500))
    assert sum(commits) == 500 and len(commits) <= 2


def test_a_bad_row_fails_alone(ledger):
    async def main():
        writer = LedgerWriter(ledger)
        rows = [row(1), row(2), row(1), row(3, prompt_tokens=-1), row(4)]
        told = await asyncio.gather(*map(writer.add, rows), return_exceptions=True)
        await writer.close()
        return told

    told = asyncio.run(main())
    assert [isinstance(error, RowError) for error in told] == [False, False, True, True, False]
    assert sorted(ids(ledger.path)) == ["1", "2", "4"]


def test_a_request_that_is_cancelled_is_counted_all_the_same(ledger):
    async def main():
        writer = LedgerWriter(ledger)
        asked = [asyncio.create_task(writer.add(row(i))) for i in range(20)]
        await asyncio.sleep(0)
        for task in asked[::2]:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await writer.close()

    asyncio.run(main())
    assert len(ids(ledger.path)) == 20


def test_while_rows_cannot_be_kept_requests_are_refused_and_then_tried_again(ledger, monkeypatch):
    now = 100.0
    monkeypatch.setattr(ledger_writer.time, "monotonic", lambda: now)
    full = True
    add = ledger.add

    def fill(rows):
        if full:
            raise LedgerError(at="disk", got="a full disk", want="room to write")
        add(rows)

    monkeypatch.setattr(ledger, "add", fill)

    async def main():
        nonlocal now, full
        writer = LedgerWriter(ledger)
        assert writer.refuse_for_s == 0
        with pytest.raises(LedgerError):
            await writer.add(row(1))
        assert writer.refuse_for_s == ledger_writer.RETRY_S
        now += ledger_writer.RETRY_S
        assert writer.refuse_for_s == 0, "one may come, to see"
        with pytest.raises(LedgerError):
            await writer.add(row(2))
        assert writer.refuse_for_s > 0
        full = False
        await writer.add(row(3))
        assert writer.refuse_for_s == 0
        await writer.close()

    asyncio.run(main())
    assert ids(ledger.path) == ["3"]


def test_every_request_that_was_answered_is_there_once_after_kills_at_any_moment(tmp_path):
    path, rng = tmp_path / "ledger.db", random.Random(7)
    answered = []
    for life in range(4):
        process = subprocess.Popen(
            [sys.executable, LOAD, path, str(life), "64"], stdout=subprocess.PIPE, text=True
        )
        first = process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        # The last line may be torn; an id is known to have been given out where its line end is.
        answered += [line for line in (first + rest).split("\n")[:-1] if line]
        reopened = Ledger.open(path)
        reopened.close()
        found = Counter(ids(path))
        assert set(found.values()) == {1}
        assert set(answered) <= set(found), "an answered request is missing"
    assert len(answered) > 200


def test_sums_are_added_up_beside_the_loop_and_hold_up_no_row(ledger, monkeypatch):
    asked, goes_on, sums = threading.Event(), threading.Event(), ledger.sums

    def slow(*wanted):
        asked.set()
        assert goes_on.wait(10), "the loop goes on"
        return sums(*wanted)

    monkeypatch.setattr(ledger, "sums", slow)

    async def main():
        writer = LedgerWriter(ledger)
        summing = asyncio.create_task(writer.read(lambda one: one.sums(("key",))))
        await asyncio.to_thread(asked.wait, 10)
        await writer.add(row(1))
        goes_on.set()
        (total,) = await summing
        assert (total.key_id, total.num_requests) == ("a", 1)
        await writer.close()

    asyncio.run(main())
