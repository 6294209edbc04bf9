"""A server under load, as processes: what the bench of it measures, in short; and what a kill leaves in the ledger."""

import asyncio
import os
import signal
import sqlite3
from collections import Counter

import pytest

import serving as bench
from streams import ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_five_hundred_connections_are_answered_or_told_when_to_come_again():
    answered, refused, _ = bench.connection_rows(500)
    assert answered.value >= 192 and answered.value + refused.value == 500


def test_who_leaves_leaves_no_work_running():
    for row in bench.leaving_rows(64):
        assert row.value < 10, row


def test_memory_does_not_grow_with_the_number_of_requests():
    for row in bench.memory_rows(500, 2500)[1:]:
        assert row.value - row.peer_value < 25, row


def test_a_kill_under_load_leaves_every_answered_request_in_the_ledger_once(tmp_path):
    folder, ledger = tmp_path / "model", tmp_path / "ledger.db"
    folder.mkdir()
    bench.make_folder(folder, "tiny")
    answered = []

    async def client(port, number):
        """Ask again and again, until nobody answers."""
        for turn in range(10_000):
            is_stream = (number + turn) % 2 == 0
            body = bench.chat(number, 4, stream=is_stream)
            if not is_stream:
                del body["stream_options"]
            reply = await ask(port, body)
            if reply.status == 0:
                return
            if reply.is_complete and reply.status == 200:
                answered.append(reply.request_id)

    async def load(port, process_id):
        clients = [asyncio.create_task(client(port, number)) for number in range(16)]
        while len(answered) < 60:
            await asyncio.sleep(0.01)
        os.kill(process_id, signal.SIGKILL)
        await asyncio.wait_for(asyncio.gather(*clients), 60)

    with bench.serving(folder, "--ledger", str(ledger)) as (port, process_id, _):
        asyncio.run(asyncio.wait_for(load(port, process_id), 120))
    connection = sqlite3.connect(ledger)
    rows = Counter(name for (name,) in connection.execute("SELECT request_id FROM requests"))
    connection.close()
    assert len(set(answered)) == len(answered) >= 60
    assert all(rows[request_id] == 1 for request_id in answered)

    with bench.serving(folder, "--ledger", str(ledger)) as (port, _, _):
        again = asyncio.run(ask(port, bench.chat(0, 4)))
    connection = sqlite3.connect(ledger)
    (count,) = connection.execute("SELECT COUNT(*) FROM requests").fetchone()
    connection.close()
    assert again.is_complete and count == len(rows) + 1
