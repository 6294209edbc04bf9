"""The ledger: exact sums, nothing ever changed, nothing lost to a kill, plain words where it cannot be kept."""

import resource
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nalar.disk import BusyError
from nalar.server.ledger import Ledger, LedgerError, Row, RowError, bounds_s, month_of

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()
DAY_S = 86_400


def row(request_id="r", **values):
    base = {"time_s": NOON, "key_id": "a", "endpoint": "/v1/completions", "model": "m"}
    return Row(request_id=str(request_id), **(base | values))


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger.open(tmp_path / "ledger.db")
    yield opened
    opened.close()


def test_sums_by_key_day_and_model(ledger):
    used = {"prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 5, "reasoning_tokens": 3}
    ledger.add(
        [
            row(1, **used, cost_usd=0.1),
            row(2, **used, cost_usd=0.2, model="n"),
            row(3, time_s=NOON + DAY_S, cost_usd=0.7),
            row(4, key_id="b", cost_usd=1e-12),
        ]
    )
    ledger.add([row("unpriced", time_s=0.0)])
    assert ledger.sums(until_s=1.0)[0].cost_usd == 0
    (whole,) = ledger.sums(since_s=1.0)
    assert (whole.num_requests, whole.prompt_tokens, whole.cached_tokens) == (4, 20, 8)
    assert (whole.completion_tokens, whole.reasoning_tokens) == (10, 6)
    assert whole.cost_picodollars == 10**12 + 1, "0.1 + 0.2 + 0.7 and the smallest cost there is"
    by_key = {one.key_id: one.cost_usd for one in ledger.sums(["key"], since_s=1.0)}
    assert by_key == {"a": 1.0, "b": 1e-12}
    days = [
        (one.day, one.model, one.num_requests) for one in ledger.sums(["model", "day"], since_s=1.0)
    ]
    assert days == [("2026-11-29", "m", 2), ("2026-11-29", "n", 1), ("2026-11-30", "m", 1)]
    assert ledger.sums((), NOON + 1, NOON + DAY_S)[0].num_requests == 0
    assert ledger.sums((), NOON, NOON + DAY_S, key_id="b")[0].num_requests == 1
    assert ledger.sums(["key"], until_s=0) == []


def test_a_month_is_one_of_utc_whatever_its_length(ledger):
    edge_s = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    ledger.add([row(1, time_s=edge_s - 0.001, cost_usd=1), row(2, time_s=edge_s, cost_usd=2)])
    assert ledger.spent("2026-11") == {"a": 10**12} and ledger.spent("2026-12") == {"a": 2 * 10**12}
    assert ledger.spent("2027-01") == {}
    assert month_of(edge_s - 0.001) == "2026-11" and month_of(edge_s) == "2026-12"
    assert bounds_s("2026-12")[1] == datetime(2027, 1, 1, tzinfo=UTC).timestamp()


def test_sums_beyond_64_bits_of_picodollars_are_exact(ledger):
    ledger.add([row(i, cost_usd=9e6) for i in range(4)] + [row("x", cost_usd=1e-12)])
    assert ledger.sums()[0].cost_picodollars == 36 * 10**18 + 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE requests SET cost_picodollars = 0",
        "DELETE FROM requests",
        "INSERT OR REPLACE INTO requests SELECT * FROM requests",
        "INSERT OR REPLACE INTO requests (rowid, request_id, time_s, key_id, endpoint, model, weight_version, "
        "prompt_tokens, cached_tokens, reasoning_tokens, completion_tokens, queue_s, total_s, status, "
        "cost_picodollars) VALUES (1, 'new', 0, '', '', '', '', 0, 0, 0, 0, 0, 0, 200, 0)",
    ],
)
def test_no_statement_changes_a_row_that_stands_there(ledger, statement):
    ledger.add([row(cost_usd=1.0)])
    other = sqlite3.connect(ledger.path)
    with pytest.raises(sqlite3.IntegrityError, match=r"append-only|is in the ledger"):
        other.execute(statement)
    other.close()
    assert ledger.sums()[0].cost_usd == 1.0


@pytest.mark.parametrize(
    "bad",
    [
        row(1),
        row(3, prompt_tokens=1, cached_tokens=2),
        row(3, completion_tokens=1, reasoning_tokens=2),
        row(3, prompt_tokens=-1),
        row(3, cost_usd=-1.0),
        row(3, model=None),
    ],
)
def test_a_row_that_cannot_stand_there_takes_none_of_its_group_in(ledger, bad):
    ledger.add([row(1)])
    with pytest.raises(RowError):
        ledger.add([row(2), bad])
    assert ledger.sums()[0].num_requests == 1
    ledger.add([row(2)])


def test_one_server_writes_and_others_read_beside_it(ledger):
    with pytest.raises(BusyError):
        Ledger.open(ledger.path)
    beside = Ledger.open(ledger.path, read_only=True)
    ledger.add([row(1)])
    assert beside.sums()[0].num_requests == 1
    with pytest.raises(LedgerError, match="open for reading"):
        beside.add([row(2)])
    ledger.close()
    again = Ledger.open(ledger.path)
    assert again.sums()[0].num_requests == 1 and beside.sums()[0].num_requests == 1
    again.close()


def made(path: Path, *statements: str) -> None:
    Ledger.open(path).close()
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def older(path):
    made(path, "PRAGMA user_version = 0")


def newer(path):
    made(path, "PRAGMA user_version = 2")


def foreign(path):
    made(path, "PRAGMA application_id = 7")


def text(path):
    path.write_text("no ledger at all " * 100)


def folder(path):
    path.mkdir()


def damaged(path):
    made(path)
    data = bytearray(path.read_bytes())
    data[100:] = b"\xa5" * (len(data) - 100)
    path.write_bytes(data)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (older, "use the nalar that wrote it"),
        (newer, "a newer nalar wrote it"),
        (foreign, "another program"),
        (text, "no ledger"),
        (damaged, "recover"),
        (folder, "a folder"),
    ],
)
def test_files_that_are_no_ledger_of_this_version(tmp_path, spoil, told, read_only):
    path = tmp_path / "ledger.db"
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(LedgerError, match=told):
        Ledger.open(path, read_only=read_only).close()
    assert not before or path.read_bytes() == before


def test_a_missing_file_is_made_for_writing_alone(tmp_path):
    with pytest.raises(LedgerError, match="no such file"):
        Ledger.open(tmp_path / "x.db", read_only=True)
    with pytest.raises(LedgerError):
        Ledger.open(Path("/proc/nowhere/x.db"))
    Ledger.open(tmp_path / "new" / "x.db").close()


def test_a_full_disk_is_told_and_what_was_there_stays(ledger):
    ledger.add([row(i) for i in range(100)])
    (pages,) = ledger._writing.execute("PRAGMA page_count").fetchone()
    ledger._writing.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerError, match="free some space"):
        ledger.add([row(f"more-{i}", endpoint="x" * 5000) for i in range(10)])
    ledger._writing.execute(f"PRAGMA max_page_count = {10 * pages}")
    ledger.add([row("after")])
    assert ledger.sums()[0].num_requests == 101


def test_a_write_that_the_system_refuses_is_told_and_rows_go_on_after_it(ledger):
    ledger.add([row(1)])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    log_bytes = ledger.path.with_name("ledger.db-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (log_bytes + 1000, limit[1]))
    try:
        for _ in range(2):
            with pytest.raises(LedgerError, match=r"a disk that fails|a full disk"):
                ledger.add([row(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    ledger.add([row(2)])
    assert ledger.sums()[0].num_requests == 2


def test_a_torn_log_costs_what_was_not_yet_on_the_disk(tmp_path):
    """The log of a killed process, cut at every place: whole commits are there, a torn one is not, and rows go on."""
    path = tmp_path / "ledger.db"
    program = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from test_ledger import Ledger, row; ledger = Ledger.open(Path(sys.argv[1]));"
        "[ledger.add([row(i)]) for i in range(5)]; os._exit(9)"
    )
    here = str(Path(__file__).parent)
    assert subprocess.run([sys.executable, "-c", program, path, here], check=False).returncode == 9
    log = path.with_name("ledger.db-wal")
    main, whole = path.read_bytes(), log.read_bytes()
    counts = []
    for cut in range(len(whole), 0, -1500):
        path.write_bytes(main)
        log.write_bytes(whole[:cut])
        path.with_name("ledger.db-shm").unlink(missing_ok=True)
        try:
            torn = Ledger.open(path)
        except LedgerError:
            pytest.fail(f"a log cut at {cut} bytes is not taken")
        counts.append(torn.sums()[0].num_requests)
        torn.add([row("after")])
        torn.close()
    assert counts[0] == 5 and counts[-1] == 0 and counts == sorted(counts, reverse=True)
