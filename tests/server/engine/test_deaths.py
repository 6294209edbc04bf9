"""What the server does when the engine's process dies, again and again. A stand-in dies on demand."""

import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest

from nalar.engine.sequence import SamplingParams
from nalar.server.engine import link as link_module
from nalar.server.engine.link import Link, Unavailable
from nalar.server.engine.messages import EngineError, EngineRequest
from nalar.server.http.app import create_app

pytestmark = pytest.mark.anyio

STAND_IN = (sys.executable, "-P", "-m", "mortal")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(link_module, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(link_module, "LONGEST_PAUSE_S", 0.08)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


async def ask(link, *ids):
    events = [event async for event in link.stream(EngineRequest(ids, SamplingParams()))]
    return events[-1].token_ids


async def test_it_is_started_again_however_often_it_dies(worker_config, caplog):
    link = Link(worker_config, STAND_IN)
    link.start()
    await link.ready()
    for _ in range(4):
        assert await ask(link, 5, 6) == (6,)
        with pytest.raises(EngineError, match="exit status 9"):
            await ask(link, 13)
        with pytest.raises(Unavailable, match=r"loading, since its process ended with exit") as why:
            await ask(link, 5)
        assert why.value.retry_after_s >= link_module.RETRY_S
        await link.ready()
    assert await ask(link, 7) == (7,)
    pauses = [record.args[:2] for record in caplog.records]
    assert pauses == [(1, 0.02), (2, 0.04), (3, 0.08), (4, 0.08)]
    assert [r.levelno >= logging.CRITICAL for r in caplog.records] == [False, False, True, True]
    await link.close()


async def test_one_that_lived_long_is_started_soon(worker_config, caplog, monkeypatch):
    monkeypatch.setattr(link_module, "STEADY_S", 0.0)
    link = Link(worker_config, STAND_IN)
    link.start()
    for _ in range(2):
        await link.ready()
        with pytest.raises(EngineError):
            await ask(link, 13)
    assert [record.args[0] for record in caplog.records] == [1, 1]
    await link.close()


async def test_one_that_was_never_ready_is_not_started_again(worker_config):
    link = Link(worker_config.model_copy(update={"weight_version": "stillborn"}), STAND_IN)
    link.start()
    with pytest.raises(EngineError, match="exit status 3"):
        await link.ready()
    with pytest.raises(Unavailable, match=r"failed, since .* exit status 3"):
        link.check()
    await link.close()


async def test_one_that_does_not_come_back_is_tried_on_and_can_be_stopped(worker_config, caplog):
    link = Link(worker_config, STAND_IN)
    link.start()
    await link.ready()
    link._config = worker_config.model_copy(update={"weight_version": "stillborn"})
    with pytest.raises(EngineError):
        await ask(link, 13)
    while len(caplog.records) < 3:
        await asyncio.sleep(0.01)
    with pytest.raises(Unavailable, match=r"loading, since .* exit status"):
        link.check()
    began = time.monotonic()
    await link.close()
    assert time.monotonic() - began < 2 and link.state == "stopped"


async def test_who_was_under_way_is_told_once_and_counted(server_config, tmp_path, monkeypatch):
    monkeypatch.setattr(link_module, "FIRST_PAUSE_S", 30.0)
    monkeypatch.setattr(link_module, "LONGEST_PAUSE_S", 30.0)
    config = server_config.model_copy(update={"ledger": tmp_path / "ledger.db"})
    app = create_app(config, link := Link(config.worker, STAND_IN))
    link.start()
    await link.ready()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        body = {"model": "tiny", "prompt": [13, 20], "max_tokens": 4}
        reply = await client.post("/v1/completions", json=body)
        assert reply.status_code == 500 and reply.json()["error"]["code"] == "engine_error"
        reply = await client.post("/v1/completions", json=body | {"prompt": [20]})
        assert reply.status_code == 503 and 28 <= int(reply.headers["retry-after"]) <= 30
        reply = await client.get("/health")
        assert reply.status_code == 503 and "exit status 9" in reply.json()["reason"]
    ledger = app.state.service.writer.ledger
    (only,) = ledger.sums([], None, None, None)
    assert only.num_requests == 1 and only.prompt_tokens == 0  # nothing came of it
    await app.state.service.close()


async def test_one_that_hangs_is_noticed_while_nobody_asks_and_taken_back_when_it_answers(
    worker_config, server_config, monkeypatch, caplog
):
    monkeypatch.setattr(link_module, "STATS_S", 0.1)
    link = Link(worker_config.model_copy(update={"hung_after_s": 0.4}), STAND_IN)
    app = create_app(server_config, link)
    link.start()
    await link.ready()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:

        async def health():
            return (await client.get("/health")).status_code

        known = await link.stats()
        assert known.cache_usage_frac == 0.5
        await asyncio.sleep(0.8)
        assert await health() == 200  # it says nothing by itself, and answers all the same
        os.kill(link.process_id, signal.SIGSTOP)
        began = time.monotonic()
        assert await link.stats() == known and time.monotonic() - began < 1
        assert (await client.get("/metrics")).status_code == 200
        async with asyncio.timeout(10):
            while await health() == 200:
                await asyncio.sleep(0.02)
        reply = await client.get("/health")
        assert reply.json()["status"] == "hung" and "retry-after" in reply.headers
        with pytest.raises(Unavailable, match="hung"):
            await ask(link, 5)
        assert await link.stats() == known
        os.kill(link.process_id, signal.SIGCONT)
        async with asyncio.timeout(10):
            while await health() != 200:
                await asyncio.sleep(0.02)
    assert await ask(link, 5, 6) == (6,)
    assert [r.levelno for r in caplog.records if r.name == link_module.__name__] == [
        logging.CRITICAL,
        logging.WARNING,
    ]
    await link.close()
