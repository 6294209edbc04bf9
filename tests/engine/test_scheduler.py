"""The scheduler with a stand-in for the device that knows what every slot of the cache holds."""

from dataclasses import dataclass, field
from itertools import repeat

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nalar.engine.blocks import BlockPool
from nalar.engine.config import EngineConfig
from nalar.engine.sample import Sample
from nalar.engine.scheduler import Plan, Scheduler
from nalar.engine.sequence import Request, SamplingParams

END = 3
LONGEST = 12

Entry = tuple[int, str, tuple[int, ...]]
"""Version of the weights, salt, and the token with all before it: what attention would tell apart."""


@dataclass
class Desk:
    """An engine without a model: draws are a function of the tokens before them."""

    config: EngineConfig
    memory: dict[int, Entry] = field(default_factory=dict)
    """By slot."""
    tables: dict[int, list[int]] = field(default_factory=dict)
    """Blocks by row, as far as a plan told the device."""
    truth: dict[Sample, list[int]] = field(default_factory=dict)
    """Tokens as the device knows them, those that the host has not seen yet included."""
    requests: dict[int, list[Sample]] = field(default_factory=dict)
    answers: dict[int, list[int]] = field(default_factory=dict)
    """By request, which samples have been answered."""
    pending: list[tuple[Sample, int]] | None = None
    """Samples, and how many tokens each drew."""
    version: int = 0
    num_arrived: int = 0

    def __post_init__(self) -> None:
        assert self.config.num_blocks is not None
        pool = BlockPool(
            self.config.num_blocks,
            self.config.block_size,
            caching=self.config.enable_prefix_caching,
        )
        self.pool, self.scheduler = pool, Scheduler(self.config, pool)

    def add(
        self, prompt, n=1, max_tokens=4, priority=0, salt="", prompt_logprobs=None, owner=""
    ) -> int:
        params = SamplingParams(
            n=n, max_tokens=max_tokens, stop_token_ids=(END,), prompt_logprobs=prompt_logprobs
        )
        request = Request(tuple(prompt), params, priority=priority, cache_salt=salt, owner=owner)
        request_id = len(self.requests)
        samples = [
            Sample(request_id, i, request, self.num_arrived + i, list(prompt)) for i in range(n)
        ]
        self.num_arrived += n
        samples[0].followers = samples[1:]
        self.requests[request_id], self.answers[request_id] = samples, []
        self.scheduler.add(samples[0])
        return request_id

    def abort(self, request_id: int) -> None:
        for sample in self.requests[request_id]:
            if not sample.is_finished:
                self.answer(sample)

    def answer(self, sample: Sample) -> None:
        self.scheduler.finish(sample)
        self.answers[sample.request_id].append(sample.sample_id)

    def step(self, *, overlaps: bool = False, fails: bool = False) -> Plan | None:
        if not overlaps:
            self.settle()
        before = self.line()
        plan = self.scheduler.schedule(may_preempt=self.pending is None)
        if plan is None:
            assert self.pending is not None
            self.settle()
            return None
        self.check(plan, *before)
        if fails:
            self.pending = None
            self.scheduler.preempt_all()
            return plan
        self.compute(plan)
        self.settle()
        self.pending = [(s, n) for s, n in zip(plan.drawing, plan.run or repeat(1), strict=False)]
        if not overlaps:
            self.settle()
        return plan

    def line(self) -> tuple[list[Sample], list[Sample]]:
        """Who decodes, and who waits in front of the groups."""
        decoding = [s for s in self.scheduler.running if s.is_decoding and not s.is_complete]
        return decoding, waiting_in(self.scheduler)

    def check(self, plan: Plan, decoding: list[Sample], waiting: list[Sample]) -> None:
        num_prompt = sum(p.end - p.start for p in plan.prefills)
        assert num_prompt + len(plan.decodes) <= self.config.max_num_batched_tokens
        assert all(p.end > p.start for p in plan.prefills)
        assert len(set(plan.drawing)) == len(list(plan.drawing))
        # A sample that decodes goes on, unless it gave way or the step is full.
        is_full = len(plan.decodes) == self.config.max_num_batched_tokens
        left = [s for s in decoding if s not in plan.decodes]
        assert is_full or all(s.row is None or s in plan.started for s in left)
        # Nobody starts before one of his own who came first. Followers go with those whom they follow.
        followers = {s for p in plan.prefills for s in p.followers}
        started = [s for s in plan.started if s not in followers]
        owners = {s.request.owner for s in (*plan.drawing, *started, *waiting)}
        for owner in owners:
            first = [s.rank for s in started if s.request.owner == owner]
            assert first == sorted(first)
            still = [
                s.rank
                for s in waiting_in(self.scheduler)
                if s in waiting and s.request.owner == owner
            ]
            assert not (first and still) or max(first) < min(still)
        # Nor goes a prompt on before such a one, if it takes what is left of the step.
        if len(owners) == 1 and plan.prefills and not plan.prefills[-1].draws:
            ranks = [p.sample.rank for p in plan.prefills]
            assert ranks == sorted(ranks)

    def slot(self, sample: Sample, position: int) -> int:
        size = self.config.block_size
        assert sample.row is not None
        return self.tables[sample.row][position // size] * size + position % size

    def entry(self, sample: Sample, position: int) -> Entry:
        tokens = tuple(self.truth[sample][: position + 1])
        return self.version, sample.request.cache_salt, tokens

    def compute(self, plan: Plan) -> None:
        assert set(plan.started) <= set(plan.grown)
        for sample in plan.grown:
            assert sample.row is not None
            self.tables[sample.row] = list(sample.blocks)
        work = [(p.sample, range(p.start, p.end)) for p in plan.prefills]
        for prefill in plan.prefills:
            sample = prefill.sample
            self.truth[sample] = list(sample.token_ids)
            for follower in prefill.followers:
                self.truth[follower] = list(sample.request.prompt_ids)
        assert not (plan.run and plan.prefills), "a run is of samples that decode, alone"
        counts = plan.run or (1,) * len(plan.decodes)
        assert all(1 <= n <= (self.config.num_scheduler_steps or 1) for n in counts)
        ends = {s: s.num_computed - n for s, n in zip(plan.decodes, counts, strict=True)}
        for i in range(max(counts, default=1)):
            going = [s for s, n in zip(plan.decodes, counts, strict=True) if i < n]
            decoded = [(s, range(ends[s] + i, ends[s] + i + 1)) for s in going]
            drawing = going if plan.run else list(plan.drawing)
            self.pass_once(decoded if i else work + decoded, plan.copies, drawing)
        assert all(len(self.truth[s]) == s.num_tokens for s in plan.drawing)

    def pass_once(
        self,
        work: list[tuple[Sample, range]],
        copies: tuple[tuple[int, int], ...],
        drawing: list[Sample],
    ) -> None:
        """One pass of the model."""
        written: set[int] = set()
        for sample, places in work:
            for position in places:
                slot = self.slot(sample, position)
                assert slot >= self.config.block_size, "nobody's block"
                assert slot not in written, "two write to one place"
                written.add(slot)
                self.memory[slot] = self.entry(sample, position)
        for sample, places in work:
            self.read(sample, places.stop)
        size = self.config.block_size
        for source, target in copies:
            for offset in range(size):
                if source * size + offset in self.memory:
                    self.memory[target * size + offset] = self.memory[source * size + offset]
        for sample in drawing:
            self.read(sample, len(self.truth[sample]))
            self.truth[sample].append(draw(self.truth[sample], sample.sample_id))

    def read(self, sample: Sample, end: int) -> None:
        """Attention: all tokens up to here must be this sample's own, by weights of today."""
        for position in range(end):
            found = self.memory.get(self.slot(sample, position))
            assert found == self.entry(sample, position), (position, found)

    def settle(self) -> None:
        pending, self.pending = self.pending, None
        for sample, count in pending or ():
            for _ in range(count):
                if sample.is_finished:
                    break
                sample.token_ids.append(self.truth[sample][len(sample.token_ids)])
                self.scheduler.publish(sample)
                if (
                    sample.token_ids[-1] == END
                    or len(sample.output_ids) == sample.request.params.max_tokens
                ):
                    self.answer(sample)

    def flush(self) -> None:
        """New weights between two calls; who is under way is computed anew."""
        self.settle()
        self.scheduler.preempt_all()
        self.scheduler.flush()
        self.version += 1

    def drain(self, **how: bool) -> None:
        steps = 0
        while self.scheduler.has_work or self.pending:
            self.step(**how)
            steps += 1
            assert steps < 2000, "no progress"

    def output(self, request_id: int) -> list[list[int]]:
        return [sample.output_ids for sample in self.requests[request_id]]


def waiting_in(scheduler: Scheduler) -> list[Sample]:
    return [sample for queue in scheduler._waiting.values() for _, sample in queue]


def draw(past: list[int], sample_id: int) -> int:
    """Something that depends on every token before it."""
    number = sample_id
    for token in past:
        number = (number * 31 + token + 7) % 1009
    return number % 7 if number % 7 < END else number % 5


def alone(sample: Sample) -> list[int]:
    """What it draws where nothing is in its way."""
    ids = list(sample.request.prompt_ids)
    for _ in range(sample.request.params.max_tokens):
        ids.append(draw(ids, sample.sample_id))
        if ids[-1] == END:
            break
    return ids[sample.num_prompt :]


def lonely(token: int, max_tokens: int) -> Sample:
    return Sample(0, 0, Request((token,), SamplingParams(max_tokens=max_tokens)), 0, [token])


def desk(**limits) -> Desk:
    defaults = {"max_model_len": 64, "block_size": 2, "num_blocks": 40, "max_num_seqs": 8}
    return Desk(EngineConfig(**{**defaults, **limits}).settled(is_gpu=False))


def test_a_flood_of_prompts_never_stops_who_decodes():
    it = desk(max_num_batched_tokens=4, num_blocks=200)
    it.add([1], max_tokens=20)
    it.step()
    [sample] = it.requests[0]
    for _ in range(30):
        it.add([0] * 9)
    for _ in range(10):
        if sample.is_finished:
            break
        plan = it.step()
        assert plan is not None and plan.decodes[0] is sample
        assert sum(p.end - p.start for p in plan.prefills) == 4 - len(plan.decodes)
    it.drain()


def test_an_urgent_prompt_goes_before_one_that_is_begun():
    it = desk(max_num_batched_tokens=4)
    it.add([0] * 12, priority=1)
    it.step()
    it.add([1] * 8, priority=0)
    for _ in range(2):
        plan = it.step()
        assert plan is not None
        assert [p.sample.request_id for p in plan.prefills] == [1]
    it.drain()


def test_a_request_of_many_samples_does_not_keep_rows_from_another_owner():
    """Rows that come free go to whoever has the fewest, in the middle of a request that fills the engine."""
    it = desk(max_num_seqs=4, num_blocks=200, num_scheduler_steps=1)
    it.add([1], n=40, max_tokens=5, owner="a")
    it.step()
    [one, *_] = it.requests[it.add([2], n=2, max_tokens=5, owner="b")]
    while one.row is None:
        assert it.step() is not None
    assert it.scheduler.num_waiting > 30
    while len(it.answers[1]) < 2:
        it.step()
    assert it.scheduler.num_waiting > 20, "two of b for about as many of a"
    it.drain()


def test_rows_that_come_free_together_are_shared_too():
    it = desk(max_num_seqs=4, num_blocks=200)
    it.add([1], n=40, max_tokens=1, owner="a")
    it.step()
    b = it.add([2], n=2, max_tokens=1, owner="b")
    it.step()
    assert len(it.answers[0]) == 6 and len(it.answers[b]) == 2
    it.drain()


def test_who_gives_way_after_being_planned_is_not_computed():
    # an even number of blocks: the first gets the last one, then the second needs one
    it = desk(num_blocks=9, block_size=1, max_num_seqs=2)
    prompts = [p for p in range(9) if len(alone(lonely(p, 7))) == 7][:2]
    it.add([prompts[0]], max_tokens=7, priority=1)
    it.step()
    it.add([prompts[1]], max_tokens=7, priority=0)
    num_preempted = 0
    for _ in range(100):
        running = list(it.scheduler.running)
        it.step()
        num_preempted += any(s.row is None and not s.is_finished for s in running)
    assert num_preempted
    assert [it.output(i) for i in (0, 1)] == [[alone(lonely(p, 7))] for p in prompts]


def test_the_last_in_line_gives_way_and_loses_nothing():
    it = desk(num_blocks=6, block_size=2, max_num_seqs=4)
    for priority in (1, 0, 2):
        it.add([1], max_tokens=6, priority=priority)
    gave_way = set()
    while it.scheduler.has_work:
        before = set(it.scheduler.running)
        it.step()
        gone = before - set(it.scheduler.running)
        gave_way |= {s.request_id for s in gone if not s.is_finished}
    assert gave_way and 1 not in gave_way
    assert all(it.output(i) == [alone(s) for s in it.requests[i]] for i in range(3))


def test_who_has_most_rows_gives_way_to_one_who_came_later():
    it = desk(num_blocks=12, block_size=1, max_num_seqs=4)
    it.add([1], n=3, max_tokens=6, owner="a")
    it.step()
    b = it.add([1], max_tokens=6, owner="b")
    num_preempted = 0
    while it.scheduler.has_work:
        before = set(it.scheduler.running)
        it.step()
        gone = {s for s in before - set(it.scheduler.running) if not s.is_finished}
        num_preempted += len(gone)
        assert b not in {s.request_id for s in gone}
    assert num_preempted
    assert all(it.output(i) == [alone(s) for s in it.requests[i]] for i in range(2))


def test_all_samples_of_a_prompt_share_its_full_blocks_and_draw_in_one_step():
    it = desk()
    it.add([0, 1, 2, 0, 1], n=4)
    plan = it.step()
    assert plan is not None and len(list(plan.drawing)) == 4
    samples = it.requests[0]
    alive = [s for s in samples if not s.is_finished]
    assert len({tuple(s.blocks[:2]) for s in alive}) == 1
    assert len({s.blocks[2] for s in alive}) == len(alive)


def test_followers_wait_where_each_would_push_out_another():
    it = desk(num_blocks=8, max_num_seqs=8)
    it.add([0, 1, 2], n=8, max_tokens=6)
    plan = it.step()
    assert plan is not None and len(plan.started) < 8
    it.drain()
    assert it.output(0) == [alone(s) for s in it.requests[0]]


def test_only_requests_of_one_salt_share_and_prompt_logprobs_read_nothing():
    it = desk()
    for salt, prompt_logprobs in (("a", None), ("a", None), ("b", None), ("a", 0)):
        it.add([0, 1, 2, 0, 1], salt=salt, prompt_logprobs=prompt_logprobs)
        it.drain()
    assert [it.requests[i][0].num_cached for i in range(4)] == [0, 4, 0, 0]


def test_a_second_turn_computes_only_what_is_new():
    it = desk(num_blocks=60, max_model_len=100)
    it.add([0, 1, 2, 2] * 5, max_tokens=6)
    it.drain()
    [first] = it.requests[0]
    it.add([*first.token_ids, 1, 1], max_tokens=6)
    plan = it.step()
    assert plan is not None
    [prefill] = plan.prefills
    known = len(first.token_ids) - 1  # the last one drawn was never computed
    assert prefill.start == known // 2 * 2 == it.requests[1][0].num_cached


def test_runs_are_as_long_as_may_be_where_nobody_needs_the_host_and_end_with_their_samples():
    it = desk(num_scheduler_steps=4, num_blocks=60)
    long = [p for p in range(30) if len(alone(lonely(p, 9))) == 9][:2]
    it.add([long[0]], max_tokens=9)
    it.add([long[1]], max_tokens=3)
    runs = []
    while it.scheduler.has_work:
        plan = it.step()
        assert plan is not None
        runs.append(plan.run)
    # Each draws its first token behind its prompt; then 4, 4 of the one, and the 2 that are left of the other.
    assert runs == [(), (4, 2), (4,)]


def test_a_run_takes_no_block_from_others():
    it = desk(num_scheduler_steps=8, block_size=1, num_blocks=12, max_num_seqs=2)
    prompts = [p for p in range(30) if len(alone(lonely(p, 8))) == 8][:2]
    for prompt in prompts:
        it.add([prompt], max_tokens=8)
    it.drain()
    assert [it.output(i) for i in (0, 1)] == [[alone(lonely(p, 8))] for p in prompts]


class Days(RuleBasedStateMachine):
    """Whatever comes in whatever order."""

    @initialize(
        block_size=st.integers(1, 4),
        spare=st.integers(0, 8),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 9),
        caching=st.booleans(),
        steps=st.integers(1, 5),
    )
    def open(self, block_size, spare, max_num_seqs, budget, caching, steps):
        num_blocks = -(-LONGEST // block_size) + 1 + spare  # one sequence fits in any case
        self.desk = desk(
            max_model_len=LONGEST,
            block_size=block_size,
            num_blocks=num_blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            enable_prefix_caching=caching,
            num_scheduler_steps=steps,
        )
        self.aborted: set[int] = set()

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=8),
        n=st.integers(1, 4),
        more=st.integers(1, 8),
        priority=st.integers(0, 1),
        salt=st.sampled_from(["", "a"]),
        prompt_logprobs=st.sampled_from([None, None, 0]),
        owner=st.sampled_from(["", "b"]),
    )
    def add(self, prompt, n, more, priority, salt, prompt_logprobs, owner):
        max_tokens = min(more, LONGEST - len(prompt))
        self.desk.add(prompt, n, max_tokens, priority, salt, prompt_logprobs, owner)

    @rule(overlaps=st.booleans(), count=st.integers(1, 4))
    def step(self, overlaps, count):
        for _ in range(count):
            self.desk.step(overlaps=overlaps)

    @rule(overlaps=st.booleans())
    def fail(self, overlaps):
        self.desk.step(overlaps=overlaps, fails=True)

    @rule()
    def flush(self):
        self.desk.flush()

    @precondition(
        lambda self: any(not all(s.is_finished for s in r) for r in self.desk.requests.values())
    )
    @rule(data=st.data())
    def abort(self, data):
        open_ = [i for i, r in self.desk.requests.items() if not all(s.is_finished for s in r)]
        request_id = data.draw(st.sampled_from(open_))
        self.aborted.add(request_id)
        self.desk.abort(request_id)

    @invariant()
    def blocks_and_rows_belong_to_those_who_run(self):
        scheduler, pool, config = self.desk.scheduler, self.desk.pool, self.desk.config
        running = scheduler.running
        held = [block for sample in running for block in sample.blocks]
        assert pool._references == [held.count(block) for block in range(pool.num_blocks)]
        assert pool.num_free == pool.num_blocks - 1 - len(set(held))
        rows = [sample.row for sample in running]
        assert sorted([*rows, *scheduler._free_rows]) == list(range(config.max_num_seqs))
        assert not any(sample.is_finished for sample in running)
        for sample in running:
            assert len(sample.blocks) >= -(-sample.num_computed // config.block_size)

    @invariant()
    def only_full_equal_blocks_are_shared(self):
        size = self.desk.config.block_size
        seen: dict[int, tuple[int, list[int], str]] = {}
        for sample in self.desk.scheduler.running:
            ids = self.desk.truth.get(sample, sample.token_ids)
            for i, block in enumerate(sample.blocks):
                place = (i, ids[: (i + 1) * size], sample.request.cache_salt)
                if block in seen:
                    assert seen[block] == place and len(place[1]) == (i + 1) * size
                seen[block] = place

    @invariant()
    def everybody_is_somewhere_once(self):
        scheduler = self.desk.scheduler
        waiting = waiting_in(scheduler)
        heads = [*waiting, *scheduler.running]
        everybody = [*heads, *(f for s in heads for f in s.followers)]
        alive = [s for r in self.desk.requests.values() for s in r if not s.is_finished]
        assert sorted(s.arrival for s in everybody) == sorted(s.arrival for s in alive)
        assert scheduler.num_waiting == len(alive) - len(scheduler.running)

    def teardown(self):
        it = self.desk
        it.drain(overlaps=True)
        assert it.pool.num_free == it.pool.num_blocks - 1
        for request_id, samples in it.requests.items():
            assert sorted(it.answers[request_id]) == list(range(len(samples)))
            if request_id not in self.aborted:
                assert it.output(request_id) == [alone(sample) for sample in samples]


Days.TestCase.settings = settings(deadline=None)
test_no_course_of_events_loses_a_request_or_a_block = Days.TestCase
