"""Rates by hand on a clock of our own, budgets that hold in parallel, a queue that is fair and bounded."""

import asyncio
import random
from dataclasses import dataclass

import pytest

from nalar.server.buckets import Bucket
from nalar.server.budgets import Budgets
from nalar.server.keys import Key
from nalar.server.ledger import Ledger, Row, bounds_s
from nalar.server.limits import Admission, Limits, Refusal
from nalar.server.limits_config import AdmissionConfig
from nalar.server.prices_config import PriceTable, usd

PRICES = PriceTable(input_usd=1.0, cached_input_usd=0.1, output_usd=2.0)
NOVEMBER_S, DECEMBER_S = bounds_s("2026-11")


@dataclass
class Clock:
    """Seconds since the test began, and the time of day that belongs to them."""

    now: float = 0.0

    def monotonic(self):
        return self.now

    def wall(self):
        return NOVEMBER_S + 3600 + self.now


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limits(clock):
    def make(budgets=None, refuse_for_s=lambda: 0.0, **settings):
        return Limits(
            AdmissionConfig(**settings),
            PRICES,
            budgets or Budgets({}),
            refuse_for_s=refuse_for_s,
            now_s=clock.monotonic,
            clock_s=clock.wall,
        )

    return make


def key(name="a", **limits):
    return Key(id=name, name=name, sha256="0" * 64, created="", **limits)


async def ask(limits, who=None, prompt=10, most=100, choices=1):
    return await limits.admit(
        who, prompt_tokens=prompt, max_completion_tokens=most, num_choices=choices
    )


def finish(admission, *usage):
    with admission:
        if usage:
            admission.settle(Usage(*usage))


def run(main):
    asyncio.run(asyncio.wait_for(main, 20))


async def settle_down():
    for _ in range(5):
        await asyncio.sleep(0)


def test_requests_a_minute_come_back_one_by_one(limits, clock):
    async def main():
        gate, ann = limits(), key(requests_per_minute=6)
        for _ in range(6):
            finish(await ask(gate, ann))
        refusal = await ask(gate, ann)
        assert (refusal.status, refusal.code) == (429, "rate_limit_exceeded")
        assert refusal.headers == {
            "Retry-After": "10",
            "x-ratelimit-limit-requests": "6",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "1m0s",
        }
        clock.now += refusal.retry_after_s - 0.5
        assert (await ask(gate, ann)).retry_after_s == 1
        clock.now += 0.5
        finish(await ask(gate, ann))
        assert isinstance(await ask(gate, key("b")), Admission), "another key has limits of its own"

    run(main())


def test_tokens_a_minute_are_charged_as_expected_and_corrected_by_what_it_took(limits, clock):
    async def main():
        gate, ann = limits(expected_completion_tokens=50), key(tokens_per_minute=600)
        first = await ask(gate, ann, prompt=100, most=10_000)
        assert first.headers["x-ratelimit-remaining-tokens"] == "450", "prompt and expected answer"
        finish(first, 100, 90, 20)
        second = await ask(gate, ann, prompt=380, most=100)
        assert second.headers["x-ratelimit-remaining-tokens"] == "50"
        finish(second, 380, 0, 400)  # dearer than expected: 600 - 120 - 780
        assert second.headers["x-ratelimit-remaining-tokens"] == "0"
        refusal = await ask(gate, ann, prompt=1, most=1)
        assert refusal.retry_after_s == 31, "2 tokens and a debt of 300, at 10 a second"
        clock.now += 31
        third = await ask(gate, ann, prompt=1, most=1)
        finish(third)  # it failed, and took nothing
        assert third.headers["x-ratelimit-remaining-tokens"] == "10"

    run(main())


def test_a_prompt_longer_than_a_minutes_worth_is_taken_when_the_bucket_is_full(limits, clock):
    async def main():
        gate, ann = limits(), key(tokens_per_minute=60)
        finish(await ask(gate, ann, prompt=1000), 1000, 0, 0)
        assert (await ask(gate, ann, prompt=1)).retry_after_s == 1000 - 60 + 60
        clock.now += 2000
        assert isinstance(await ask(gate, ann, prompt=1000), Admission)

    run(main())


def test_a_limit_that_is_changed_holds_at_once_and_a_debt_stays():
    bucket = Bucket(60, 0.0)
    bucket.take(100, 0.0)
    bucket.resize(120, 0.0)
    assert bucket.level(0.0) == 20 and bucket.level(1e9) == 120
    bucket.resize(10, 1e9)
    assert bucket.level(1e9) == 10


def test_parallel_requests_overrun_a_budget_by_less_than_one_of_them(limits):
    async def main():
        most_usd = 100e-6 * 1.0 + 1000e-6 * 2.0  # of a prompt of 100 and an answer of 1,000
        ann = key(monthly_budget_usd=round(3.5 * most_usd, 6))
        gate = limits()
        outcomes = [await ask(gate, ann, 100, 1000) for _ in range(20)]
        admitted = [one for one in outcomes if isinstance(one, Admission)]
        refused = [one for one in outcomes if isinstance(one, Refusal)]
        assert len(admitted) == 4
        assert {(one.status, one.code) for one in refused} == {(429, "budget_reserved")}
        for one in admitted:
            finish(one, 100, 0, 1000)
        spent = usd(gate.budgets.spent("a", "2026-11"))
        assert ann.monthly_budget_usd <= spent < ann.monthly_budget_usd + most_usd
        last = await ask(gate, ann)
        assert (last.status, last.code, last.retry_after_s) == (402, "insufficient_quota", None)
        assert gate.budgets.reserved("a") == 0

    run(main())


def test_what_was_reserved_and_not_used_is_free_again(limits):
    async def main():
        gate, ann = limits(), key(monthly_budget_usd=0.002)
        for _ in range(50):
            admission = await ask(gate, ann, 100, 1000)
            assert (await ask(gate, ann, 100, 1000)).code == "budget_reserved"
            finish(admission, 100, 100, 1)
        assert gate.budgets.spent("a", "2026-11") == 50 * 12_000_000

    run(main())


def test_a_request_counts_for_the_month_that_it_was_admitted_in(limits, clock, tmp_path):
    async def main():
        gate, ann = limits(), key(monthly_budget_usd=1.0)
        clock.now = DECEMBER_S - NOVEMBER_S - 3600 - 1
        before = await ask(gate, ann)
        clock.now += 2
        assert isinstance(await ask(gate, ann), Admission)
        finish(before, 1_000_000, 0, 0)
        assert gate.budgets.spent("a", "2026-11") == 10**12
        assert gate.budgets.spent("a", "2026-12") == 0
        assert isinstance(await ask(gate, ann), Admission)
        row = Row(
            request_id="r", time_s=before.time_s, key_id="a", endpoint="", model="", cost_usd=1.0
        )
        ledger = Ledger.open(tmp_path / "l.db")
        ledger.add([row])
        again = limits(Budgets.of(ledger, DECEMBER_S - 1))
        clock.now -= 2
        assert (await ask(again, ann)).status == 402, "as the server that ran before had it"
        ledger.close()

    run(main())


def test_a_key_has_so_many_under_way_whether_they_run_or_wait(limits, clock):
    async def main():
        gate, ann = limits(max_running=1), key(max_parallel=2)
        first = await ask(gate, ann)
        second = asyncio.create_task(ask(gate, ann))
        await settle_down()
        refusal = await ask(gate, ann)
        assert (refusal.status, refusal.code) == (429, "too_many_parallel")
        clock.now += 3
        finish(first)
        finish(await second)
        assert (await second).queue_s == 3
        assert isinstance(await ask(gate, ann), Admission)

    run(main())


def test_keys_take_turns_whoever_asks_more(limits):
    async def main():
        gate = limits(max_running=2)
        order, running = [], [await ask(gate, key("a")), await ask(gate, key("a"))]

        async def wait(name):
            running.append(await ask(gate, key(name)))
            order.append(name)

        tasks = [asyncio.create_task(wait("a")) for _ in range(8)]
        await settle_down()
        tasks += [asyncio.create_task(wait(name)) for name in "bcbc"]
        await settle_down()
        while running:
            running.pop(0).release()
            await settle_down()
        await asyncio.gather(*tasks)
        assert order[:5] == ["b", "c", "b", "c", "a"] or order[:5] == ["b", "c", "a", "b", "c"]
        assert order.index("c") < 3 and gate.running == gate.queued == 0

    run(main())


def test_a_flood_takes_its_places_from_itself(limits):
    async def main():
        gate = limits(max_running=1, max_queued=4)
        held = await ask(gate, key("a"))
        flood = [asyncio.create_task(ask(gate, key("a"))) for _ in range(6)]
        await settle_down()
        assert [task.done() for task in flood] == [False] * 4 + [True] * 2
        other = asyncio.create_task(ask(gate, key("b")))
        await settle_down()
        refusal = flood[3].result()
        assert (refusal.status, refusal.code) == (429, "queue_full") and refusal.retry_after_s >= 1
        assert not other.done() and gate.queued == 4
        held.release()
        assert isinstance(await other, Admission)
        for task in flood[:3]:
            task.cancel()
        await settle_down()
        assert gate.queued == gate.queued_tokens == 0

    run(main())


def test_who_leaves_the_queue_as_it_overflows_takes_nobody_along(limits):
    async def main():
        gate = limits(max_running=1, max_queued=2)
        held = await ask(gate, key("a"))
        flood = [asyncio.create_task(ask(gate, key("b"))) for _ in range(2)]
        await settle_down()
        newcomer = asyncio.create_task(ask(gate, key("c")))
        flood[1].cancel()  # not told yet when the newcomer takes its place
        await settle_down()
        assert not newcomer.done() and gate.queued == 2
        held.release()
        for one in asyncio.as_completed((flood[0], newcomer)):
            (await one).release()
        assert gate.running == gate.queued == gate.queued_tokens == 0

    run(main())


def test_prompt_tokens_that_wait_are_bounded_but_for_a_single_long_one(limits):
    async def main():
        gate = limits(max_running=1, max_queued_tokens=100)
        await ask(gate, key("a"))
        long = asyncio.create_task(ask(gate, key("a"), prompt=500))
        await settle_down()
        assert not long.done()
        short = asyncio.create_task(ask(gate, key("b"), prompt=60))
        await settle_down()
        assert long.done() and not short.done(), "the key that has most of it gives way"
        assert (await ask(gate, key("b"), prompt=60)).code == "queue_full"
        short.cancel()

    run(main())


def test_whoever_is_cancelled_leaves_nothing_behind(limits):
    async def main():
        gate = limits(max_running=1)
        ann = key(requests_per_minute=10, tokens_per_minute=10_000, monthly_budget_usd=1.0)
        held = await ask(gate, ann)
        rates = held.headers
        waiting = [asyncio.create_task(ask(gate, ann)) for _ in range(3)]
        await settle_down()
        waiting[0].cancel()
        held.release()  # granted to the first, in the moment that it leaves
        waiting[1].cancel()
        await settle_down()
        finish(await waiting[2])
        assert gate.running == gate.queued == gate.queued_tokens == 0
        assert gate.budgets.reserved("a") == 0
        assert int(held.headers["x-ratelimit-remaining-requests"]) == 10 - 3, (
            "one was never granted"
        )
        assert int(held.headers["x-ratelimit-remaining-tokens"]) == 10_000
        assert rates["x-ratelimit-remaining-requests"] == "9"

    run(main())


def test_while_nothing_can_be_counted_nothing_is_taken(limits):
    async def main():
        gate = limits(refuse_for_s=lambda: 3.2)
        refusal = await ask(gate, None)
        assert (refusal.status, refusal.headers) == (503, {"Retry-After": "4"})

    run(main())


def test_no_key_means_no_budget_and_the_limits_of_the_server(limits):
    async def main():
        gate = limits(requests_per_minute=2)
        for _ in range(2):
            finish(await ask(gate, None), 10**6, 0, 0)
        assert (await ask(gate, None)).code == "rate_limit_exceeded"

    run(main())


def test_a_storm_ends_with_nothing_held(limits):
    """Many keys ask, leave and fail in any order: what is running never exceeds its bound, and all is given back."""

    async def main():
        rng = random.Random(3)
        gate = limits(max_running=4, max_queued=10, max_queued_tokens=2000)
        keys = [key(name, monthly_budget_usd=0.03, max_parallel=9) for name in "abc"]
        seen = set()

        async def client(number):
            sizes = rng.randint(1, 900), rng.randint(1, 900), rng.choice((1, 1, 2, 4))
            outcome = await ask(gate, rng.choice(keys), *sizes)
            assert gate.running <= 4 and gate.queued_choices <= 10
            seen.add(getattr(outcome, "code", "admitted"))
            if isinstance(outcome, Admission):
                with outcome:
                    for _ in range(rng.randint(0, sizes[2])):
                        outcome.choice_ended()
                    await asyncio.sleep(rng.random() * 0.002)
                    if rng.random() < 0.8:
                        outcome.settle(Usage(rng.randint(1, 900), 0, rng.randint(0, 900)))

        tasks = []
        for number in range(400):
            tasks.append(asyncio.create_task(client(number)))
            if rng.random() < 0.2:
                rng.choice(tasks).cancel()
            # The first come at once, so that a queue is full whatever the clock does.
            if number > 60:
                await asyncio.sleep(0 if rng.random() < 0.7 else 0.001)
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [e for e in errors if e and not isinstance(e, asyncio.CancelledError)] == []
        assert {"admitted", "queue_full", "insufficient_quota"} <= seen
        assert gate.running == gate.queued == gate.queued_tokens == 0
        assert [gate.budgets.reserved(k.id) for k in keys] == [0, 0, 0]

    run(main())


def test_places_are_counted_in_choices_and_come_free_one_by_one(limits):
    async def main():
        gate = limits(max_running=8, max_queued=10)
        many = await ask(gate, key("a"), choices=6)
        assert (await ask(gate, key("a"), choices=9)).status == 400, "there is never room for it"
        next_many = asyncio.create_task(ask(gate, key("a"), choices=6))
        await settle_down()
        single = asyncio.create_task(ask(gate, key("b")))
        await settle_down()
        assert single.done() and not next_many.done(), "the key with fewer choices goes first"
        second = asyncio.create_task(ask(gate, key("b"), choices=2))
        await settle_down()
        assert not second.done() and gate.queued_choices == 8
        second.cancel()
        for _ in range(4):
            many.choice_ended()
        await settle_down()
        assert not next_many.done()
        many.choice_ended()
        await settle_down()
        assert next_many.done() and gate.running == 8
        many.choice_ended()  # the last: its place is kept until it is counted
        assert gate.running == 8
        for one in (many, await single, await next_many):
            one.release()
        assert gate.running == gate.queued_choices == 0

    run(main())


def test_who_waits_behind_one_without_room_goes_on_when_that_one_leaves(limits):
    async def main():
        gate = limits(max_running=4)
        held = await ask(gate, key("a"), choices=2)
        big = asyncio.create_task(ask(gate, key("b"), choices=3))
        await settle_down()
        small = asyncio.create_task(ask(gate, key("a")))
        await settle_down()
        assert not small.done(), "nobody overtakes whose turn it is"
        big.cancel()
        (await small).release()
        held.release()
        assert gate.running == gate.queued == 0

    run(main())


def test_what_may_wait_and_run_of_a_key_is_counted_in_choices(limits):
    async def main():
        gate, ann = limits(max_running=4, max_queued=6), key(max_parallel=7)
        held = await ask(gate, ann, choices=4)
        assert (await ask(gate, ann, choices=4)).code == "too_many_parallel"
        waiting = asyncio.create_task(ask(gate, ann, choices=3))
        others = [asyncio.create_task(ask(gate, key("b"), choices=2)) for _ in range(2)]
        await settle_down()
        assert others[1].result().code == "queue_full", "4 of b's would be more than 3 of a's"
        held.release()
        (
            await others[0]
        ).release()  # the key that was served longest ago; the other has no room beside it
        (await waiting).release()
        assert gate.running == gate.queued_choices == 0

    run(main())


def test_each_choice_is_expected_to_be_as_long_as_an_answer(limits):
    async def main():
        gate, ann = limits(expected_completion_tokens=50), key(tokens_per_minute=1000)
        held = await ask(gate, ann, prompt=100, most=10_000, choices=4)
        assert held.headers["x-ratelimit-remaining-tokens"] == "700"

    run(main())
