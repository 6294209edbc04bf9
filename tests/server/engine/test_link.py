"""The engine's process, seen from the server: streams, aborts, deaths."""

import asyncio
import os
import signal
from contextlib import aclosing

import pytest

from nalar.config import UserError
from nalar.engine.sequence import SamplingParams
from nalar.server.ask import GrammarSpec
from nalar.server.engine import link as link_module
from nalar.server.engine.link import Link, Unavailable
from nalar.server.engine.messages import IDLE, EngineError, EngineRequest, EngineStats

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def asked(**params):
    params = {"max_tokens": 8, "min_tokens": 8, "seed": 1} | params
    return EngineRequest((20, 21, 22), SamplingParams(**params))


async def gathered(link, request):
    ids = {}
    async with aclosing(link.stream(request)) as events:
        async for event in events:
            ids.setdefault(event.choice, []).extend(event.token_ids)
    return ids


async def quiet(link):
    while await link.stats() != IDLE:
        await asyncio.sleep(0.02)


async def test_a_process_answers_is_left_dies_and_comes_back(worker_config, monkeypatch):
    """One process for all of it: to start one takes seconds."""
    monkeypatch.setattr(link_module, "FIRST_PAUSE_S", 0.05)
    link = Link(worker_config)
    with pytest.raises(Unavailable):
        await gathered(link, asked())
    link.start()
    try:
        facts = await link.ready()
        assert facts.max_model_len == 512 and facts.weight_version == "tiny-0"
        await _answers(link)
        await _compiles_beside(link)
        await _is_left(link)
        await _dies(link)
        assert await gathered(link, asked()) == await gathered(link, asked())
    finally:
        await link.close()
    assert link.state == "stopped" and link.process_id is None
    with pytest.raises(Unavailable):
        await gathered(link, asked())


async def _answers(link):
    one, two = await asyncio.gather(
        gathered(link, asked(n=2)), gathered(link, asked(n=2, logprobs=2, prompt_logprobs=1))
    )
    assert one == two and set(one) == {0, 1} and len(one[0]) == 8
    with pytest.raises(UserError, match="max_model_len"):
        await gathered(link, asked(max_tokens=5000))
    bad = GrammarSpec("lark", "start: nowhere")
    with pytest.raises(UserError, match="grammar"):
        await gathered(link, EngineRequest((20,), SamplingParams(), grammar=bad))


async def _compiles_beside(link):
    """A schema that compiles for minutes: others go on, and it is refused or left."""
    costly = [
        GrammarSpec("json_schema", f'{{"type": "integer", "multipleOf": {n}}}', "response_format")
        for n in (999_983, 999_979)
    ]
    compiling = [
        asyncio.create_task(gathered(link, EngineRequest((20,), SamplingParams(), grammar=one)))
        for one in costly
    ]
    assert len((await gathered(link, asked()))[0]) == 8
    assert await link.stats() == EngineStats(running=0, waiting=2, cache_usage_frac=0.0)
    compiling[1].cancel()
    with pytest.raises(UserError, match=r"response_format: got .* longer than 0\.5 s"):
        await compiling[0]
    await asyncio.wait_for(quiet(link), 10)


async def _is_left(link):
    async with aclosing(link.stream(asked(max_tokens=400, min_tokens=400, n=3))) as events:
        await anext(events)
        stats = await link.stats()
        assert stats.running == 1 and stats.waiting == 0
        # 16 sequences of 512 tokens fit, in 256 blocks: three choices hold one each at least, 13 at most
        assert 3 / 256 <= stats.cache_usage_frac <= 39 / 256
    await asyncio.wait_for(quiet(link), 10)
    unread = []
    async with aclosing(link.stream(asked(max_tokens=40, min_tokens=40, n=3), unread)) as events:
        first = await anext(events)
        await asyncio.wait_for(quiet(link), 20)
    counts = dict.fromkeys(range(3), 0)
    for event in [first, *unread]:
        counts[event.choice] += len(event.token_ids)
    assert counts == dict.fromkeys(range(3), 40), "all that was drawn, whether it was read or not"


async def _dies(link):
    long = asyncio.create_task(gathered(link, asked(max_tokens=400, min_tokens=400)))
    while not (await link.stats()).running:
        await asyncio.sleep(0.01)
    died = link.process_id
    os.kill(died, signal.SIGKILL)
    with pytest.raises(EngineError, match="exit status"):
        await long
    assert link.state == "loading"
    await link.ready()
    assert link.process_id not in (None, died)


async def test_a_slow_reader_gets_all_in_few_events(worker_config):
    """Deltas are joined while nobody takes them."""
    box = link_module._Mailbox()
    events = [link_module.Event(i % 2, (i,), (-float(i),)) for i in range(100)]
    for event in events:
        box.put(event)
    first, second = await box.take()
    assert first.token_ids == tuple(range(0, 100, 2)) and len(second.logprobs) == 50
    box.put(events[0])
    box.fail(EngineError("it died"))
    assert len(await box.take()) == 1
    with pytest.raises(EngineError):
        await box.take()


@pytest.mark.slow  # a process is started for it
async def test_a_folder_that_cannot_be_loaded_is_said_and_not_tried_again(worker_config, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    link = Link(worker_config.model_copy(update={"folder": tmp_path}))
    link.start()
    with pytest.raises(UserError):
        await link.ready()
    assert link.state == "failed"
    await link.close()
