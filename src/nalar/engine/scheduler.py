"""Which tokens of which samples are computed in the next step. Knows no tensors and imports no torch.

A step plans tokens per sample: a prompt, a chunk of one, one new token of each sample that decodes. Samples that
decode come first, so that a flood of prompts never makes them wait; prompts share what is left of
`max_num_batched_tokens`, in order of priority and arrival. Where several owners of requests wait, a free row goes to
the one with the fewest.

Counts run ahead of the tokens: the next step can be planned before the tokens of the last are known.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from nalar.engine.blocks import UNKNOWN, BlockPool
from nalar.engine.config import EngineConfig, SpeculationConfig
from nalar.engine.lookup import Lookup
from nalar.engine.sample import Sample


@dataclass(frozen=True, slots=True)
class Prefill:
    """Tokens `start` to `end` of a sample, computed at once."""

    sample: Sample
    start: int
    end: int
    followers: tuple[Sample, ...]
    """Samples that take over its prompt and draw their first token from the same logits."""
    draws: bool
    """Whether these were the last, so that the next token can be drawn."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One step."""

    prefills: tuple[Prefill, ...]
    decodes: tuple[Sample, ...]
    num_drafts: tuple[int, ...]
    """Of each that decodes: guesses computed behind its newest token. Empty: nobody guesses here."""
    started: tuple[Sample, ...]
    """Samples that have got a row."""
    grown: tuple[Sample, ...]
    """Samples that have got blocks, those with a new row included."""
    copies: tuple[tuple[int, int], ...]
    """Blocks to copy onto others behind the step: the last, unfilled one of a prompt, for each follower."""
    run: tuple[int, ...] = ()
    """Of each that decodes: tokens it draws, one after another, before the host looks. Empty: one each."""

    @property
    def drawing(self) -> Iterator[Sample]:
        """Whose next token is drawn, in order; once more for each guess."""
        for prefill in self.prefills:
            if prefill.draws:
                yield prefill.sample
                yield from prefill.followers
        yield from self.decoded

    @property
    def decoded(self) -> Sequence[Sample]:
        """Those that decode; once more for each guess."""
        if not self.num_drafts:
            return self.decodes
        each = zip(self.decodes, self.num_drafts, strict=True)
        return [sample for sample, count in each for _ in range(1 + count)]

    @property
    def places(self) -> list[int]:
        """Of each in `drawing`: how many guesses stand between it and what is known."""
        first = [0 for p in self.prefills if p.draws for _ in (p.sample, *p.followers)]
        return first + [place for n in self.num_drafts for place in range(1 + n)]


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    budget: int
    """Tokens that still fit in."""
    prefills: list[Prefill] = field(default_factory=list)
    decodes: list[Sample] = field(default_factory=list)
    started: list[Sample] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)


class Scheduler:
    """Blocks and rows of all samples, from their arrival to their end."""

    def __init__(self, config: EngineConfig, pool: BlockPool) -> None:
        self._config, self.pool = config, pool
        settled = config.settled(is_gpu=False)  # as the engine has done, where there is one
        self._max_tokens = settled.max_num_batched_tokens or 1
        self._max_steps = settled.num_scheduler_steps or 1
        self._waiting: dict[str, list[tuple[tuple[int, int], Sample]]] = {}
        """A heap for each owner that has any."""
        self.running: list[Sample] = []
        self._free_rows = list(range(config.max_num_seqs))
        self._grown: list[Sample] = []
        """Samples that have got blocks since the last plan."""

    @property
    def num_waiting(self) -> int:
        waiting = sum(1 + len(s.followers) for queue in self._waiting.values() for _, s in queue)
        return waiting + sum(len(sample.followers) for sample in self.running)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self.running)

    @property
    def needs_host(self) -> bool:
        """Whether a sample's next step depends on tokens that are under way."""
        if self._config.speculation is not None:
            return True  # how many tokens a step gives is known behind it
        return any(sample.needs_host for sample in self.running)

    def add(self, sample: Sample) -> None:
        heapq.heappush(self._waiting.setdefault(sample.request.owner, []), (sample.rank, sample))

    def schedule(self, *, may_preempt: bool = True) -> Plan | None:
        """The next step, all counts moved on as if it were done.

        None: a sample must give way and may not, since tokens of it are under way.
        """
        draft = _Draft(self._max_tokens)
        begun: list[Sample] = []
        for sample in list(self.running):
            if sample.row is None or sample.is_complete:
                continue
            if not sample.is_decoding:
                begun.append(sample)
            elif len(draft.decodes) < draft.budget and sample.may_draw:
                if not self._make_room(sample, draft, may_preempt):
                    return None
                if sample.row is not None:
                    draft.decodes.append(sample)
        draft.budget -= len(draft.decodes)
        self._plan_prompts([sample for sample in begun if sample.row is not None], draft)
        num_drafts = tuple(self._guesses(draft)) if self._config.speculation else ()
        run = self._run(draft)
        for sample, count in zip(draft.decodes, run or repeat(1), strict=False):
            self.move_on(sample, count)
        grown = [*draft.started, *(sample for sample in self._grown if sample.row is not None)]
        self._grown = []
        return Plan(
            tuple(draft.prefills),
            tuple(draft.decodes),
            num_drafts,
            tuple(draft.started),
            tuple(grown),
            tuple(draft.copies),
            run,
        )

    def move_on(self, sample: Sample, count: int = 1) -> None:
        """So many more tokens are computed and drawn: by plan, or by a guess that was accepted."""
        sample.num_computed += count
        sample.num_drawn += count

    def publish(self, sample: Sample) -> None:
        """Offer to others the blocks that are full by now."""
        size = self.pool.block_size
        if sample.num_computed < (sample.num_published + 1) * size:
            return
        full = min(sample.num_computed, len(sample.token_ids)) // size
        for i in range(sample.num_published, full):
            tokens = sample.token_ids[i * size : (i + 1) * size]
            sample.content = self.pool.publish(
                sample.blocks[i], sample.content, tokens, sample.request.cache_salt
            )
            sample.num_published = i + 1

    def finish(self, sample: Sample) -> None:
        """Give back all it holds. Steps under way may still write to its blocks, but before any other does."""
        sample.is_finished = True
        sample.followers = []
        if sample.row is not None:
            self._leave(sample)
        else:
            owner = sample.request.owner
            queue = [entry for entry in self._waiting.pop(owner, ()) if entry[1] is not sample]
            if queue:
                heapq.heapify(queue)
                self._waiting[owner] = queue

    def preempt_all(self) -> None:
        """Nobody keeps anything in the cache; all wait to be computed anew, from the tokens that are known."""
        for sample in list(self.running):
            self._preempt(sample)

    def flush(self) -> None:
        """Nothing in the cache can be found by later requests: the weights have changed."""
        self.pool.flush()
        for sample in self.running:
            sample.content = UNKNOWN

    def _make_room(self, sample: Sample, draft: _Draft, may_preempt: bool) -> bool:
        """A block for the next token where one is needed. Others give way, or in the end this sample itself.

        False: somebody must give way and may not.
        """
        if sample.num_tokens <= len(sample.blocks) * self.pool.block_size:
            return True
        while (blocks := self.pool.allocate(1)) is None:
            if not may_preempt:
                return False
            victim = max(self.running, key=self._turns())
            self._preempt(victim)
            if victim is sample:
                return True
            if victim in draft.decodes:
                draft.decodes.remove(victim)
        sample.blocks += blocks
        self._grown.append(sample)
        return True

    def _run(self, draft: _Draft) -> tuple[int, ...]:
        """How many tokens each draws where nobody needs the host between them, and blocks for these."""
        most = self._max_steps
        if most == 1 or draft.prefills or not all(s.can_run for s in draft.decodes):
            return ()
        counts = [min(most, s.request.params.max_tokens - s.num_drawn) for s in draft.decodes]
        size = self.pool.block_size
        missing = [
            max(0, -(-(sample.num_tokens + count - 1) // size) - len(sample.blocks))
            for sample, count in zip(draft.decodes, counts, strict=True)
        ]
        if sum(missing) > self.pool.num_free:
            return ()
        for sample, count in zip(draft.decodes, missing, strict=True):
            if count:
                sample.blocks += self.pool.allocate(count) or []
                self._grown.append(sample)
        return tuple(counts) if max(counts, default=1) > 1 else ()

    def _guesses(self, draft: _Draft) -> Iterator[int]:
        """How many guesses each is given: what is left of tokens and blocks behind everything else."""
        speculation = self._config.speculation
        limit = None if speculation is None else speculation.disable_by_batch_size
        if limit is not None and len(draft.decodes) > limit:
            speculation = None
        for sample in draft.decodes:
            count = 0
            if speculation is not None:
                most = min(speculation.num_speculative_tokens, sample.draft_room, draft.budget)
                count = propose(sample, speculation, most)
                count = self._room_for_guesses(sample, count)
            sample.drafts = sample.drafts[:count]
            sample.num_drafted += count
            sample.num_draft_steps += count > 0
            draft.budget -= count
            yield count

    def _room_for_guesses(self, sample: Sample, count: int) -> int:
        """Blocks for this many guesses, or the number that there is room for; a block is left to each who runs."""
        size = self.pool.block_size
        missing = -(-(sample.num_tokens + count) // size) - len(sample.blocks)
        if missing > 0 and self._has_room(missing):
            sample.blocks += self.pool.allocate(missing) or []
            self._grown.append(sample)
        return max(0, min(count, len(sample.blocks) * size - sample.num_tokens))

    def _plan_prompts(self, begun: list[Sample], draft: _Draft) -> None:
        """What is left of the step, to prompts in order of rank."""
        begun.sort(key=lambda sample: sample.rank, reverse=True)
        while draft.budget > 0 and (sample := self._next_prompt(begun, draft)) is not None:
            self._plan_prefill(sample, draft)

    def _next_prompt(self, begun: list[Sample], draft: _Draft) -> Sample | None:
        """The first in line, of those that are begun (the last of the list first) and those that wait."""
        if self._waiting and self._free_rows:
            sample = self._first_waiting()
            if (not begun or sample.rank < begun[-1].rank) and self._admit(sample):
                draft.started.append(sample)
                return sample
        return begun.pop() if begun else None

    def _first_waiting(self) -> Sample:
        """Of the most urgent the one whose owner has the fewest rows, and of such the one that came first."""
        first = [queue[0][1] for queue in self._waiting.values()]
        return first[0] if len(first) == 1 else min(first, key=self._turns())

    def _is_turn_of(self, follower: Sample) -> bool:
        """Whether no other owner who waits comes before it."""
        if self._waiting.keys() <= {follower.request.owner}:
            return True
        turn = self._turns()
        return turn(follower) < turn(self._first_waiting())

    def _turns(self) -> Callable[[Sample], tuple[int, int, tuple[int, int]]]:
        """By what samples of several owners are put in order."""
        rows = Counter(sample.request.owner for sample in self.running)
        return lambda s: (s.request.priority, rows[s.request.owner], s.rank)

    def _plan_prefill(self, sample: Sample, draft: _Draft) -> None:
        """The next tokens of a prompt, and the followers that it can take along."""
        start = sample.num_computed
        end = min(sample.num_tokens, start + draft.budget)
        draws = end == sample.num_tokens
        followers = self._fork(sample, draft) if draws else []
        sample.num_computed = end
        sample.num_drawn += draws
        draft.prefills.append(Prefill(sample, start, end, tuple(followers), draws))
        draft.budget -= end - start

    def _admit(self, sample: Sample) -> bool:
        """Give the first who waits a row and blocks for all it has, or leave it where it is."""
        pool = self.pool
        reads = self._config.enable_prefix_caching and sample.request.params.prompt_logprobs is None
        # The last token is computed in any case: the next one is drawn from its state.
        found = pool.find(sample.token_ids[:-1] if reads else (), sample.request.cache_salt)
        num_needed = -(-sample.num_tokens // pool.block_size) - len(found.blocks)
        pool.share(found.blocks)
        is_room = not self.running or self._has_room(num_needed)
        blocks = pool.allocate(num_needed) if is_room else None
        if blocks is None:
            pool.release(found.blocks)
            return False
        queue = self._waiting[sample.request.owner]
        heapq.heappop(queue)
        if not queue:
            del self._waiting[sample.request.owner]
        sample.blocks = [*found.blocks, *blocks]
        sample.num_found = len(found.blocks) * pool.block_size
        # Drafts need the state of the token before the first new one, so that is computed again.
        is_again = self._config.keeps_drafts and bool(found.blocks)
        sample.num_computed = sample.num_found - is_again
        sample.num_published, sample.content = len(found.blocks), found.content
        if sample.num_cached is None:
            sample.num_cached = min(sample.num_found, sample.num_prompt)
        self._enter(sample)
        return True

    def _fork(self, leader: Sample, draft: _Draft) -> list[Sample]:
        """Rows and blocks for the followers of a prompt that is about to be computed; the rest wait as a group."""
        pool, waiting = self.pool, leader.followers
        leader.followers = []
        full, rest = divmod(leader.num_prompt, pool.block_size)
        num_own = 1 if rest else 0
        forked: list[Sample] = []
        for sample in waiting:
            sample.num_cached = leader.num_cached
        while (
            waiting and self._free_rows and self._has_room(num_own) and self._is_turn_of(waiting[0])
        ):
            own = pool.allocate(num_own)
            assert own is not None
            sample = waiting.pop(0)
            pool.share(leader.blocks[:full])
            sample.blocks = [*leader.blocks[:full], *own]
            draft.copies += [(leader.blocks[full], block) for block in own]
            sample.num_computed, sample.num_drawn = leader.num_prompt, 1
            sample.num_published, sample.content = leader.num_published, leader.content
            self._enter(sample)
            forked.append(sample)
        if waiting:
            waiting[0].followers = waiting[1:]
            self.add(waiting[0])
        draft.started += forked
        return forked

    def _has_room(self, num_blocks: int) -> bool:
        """Whether these can be taken with one left for each who runs, lest they push the new one out at once."""
        return self.pool.num_free - num_blocks >= len(self.running)

    def _enter(self, sample: Sample) -> None:
        sample.row = heapq.heappop(self._free_rows)
        self.running.append(sample)

    def _leave(self, sample: Sample) -> None:
        assert sample.row is not None
        self.pool.release(sample.blocks)
        heapq.heappush(self._free_rows, sample.row)
        self.running.remove(sample)
        sample.blocks, sample.row = [], None

    def _preempt(self, sample: Sample) -> None:
        """Back into the queue. Nothing is lost but time: its tokens are kept, and its random numbers go by position."""
        self._leave(sample)
        sample.num_computed = sample.num_published = sample.content = 0
        sample.num_drawn = len(sample.token_ids) - sample.num_prompt
        if not sample.num_drawn:
            sample.prompt_logprobs = []
        self.add(sample)


def propose(sample: Sample, speculation: SpeculationConfig, most: int) -> int:
    """How many of the next tokens there are guesses for; those of a lookup are noted."""
    if most <= 0:
        return 0
    if speculation.method == "ngram":
        if sample.lookup is None:
            sample.lookup = Lookup(speculation.prompt_lookup_min, speculation.prompt_lookup_max)
        sample.drafts = sample.lookup.guess(sample.token_ids, most)
        return len(sample.drafts)
    return most
