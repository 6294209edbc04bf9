"""Which tokens of which samples are computed in the next step. Knows no tensors and imports no torch.

A step plans tokens per sample: a prompt, a chunk of one, one new token of each sample that decodes. Samples that
decode come first, so that a flood of prompts never makes them wait; prompts share what is left of
`max_num_batched_tokens`, in order of priority and arrival.

Counts run ahead of the tokens: the next step can be planned before the tokens of the last are known.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from nalar.engine.blocks import UNKNOWN, BlockPool
from nalar.engine.config import EngineConfig
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
    started: tuple[Sample, ...]
    """Samples that have got a row."""
    grown: tuple[Sample, ...]
    """Samples that have got blocks, those with a new row included."""
    copies: tuple[tuple[int, int], ...]
    """Blocks to copy onto others behind the step: the last, unfilled one of a prompt, for each follower."""

    @property
    def drawing(self) -> Iterator[Sample]:
        """Whose next token is drawn, in order."""
        for prefill in self.prefills:
            if prefill.draws:
                yield prefill.sample
                yield from prefill.followers
        yield from self.decodes


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
        self._config = config
        self.pool = pool
        self._waiting: list[tuple[tuple[int, int], Sample]] = []
        self.running: list[Sample] = []
        self._free_rows = list(range(config.max_num_seqs))
        self._grown: list[Sample] = []
        """Samples that have got blocks since the last plan."""

    @property
    def num_waiting(self) -> int:
        waiting = sum(1 + len(sample.followers) for _, sample in self._waiting)
        return waiting + sum(len(sample.followers) for sample in self.running)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self.running)

    @property
    def needs_host(self) -> bool:
        """Whether a sample's next step depends on tokens that are under way."""
        return any(sample.needs_host for sample in self.running)

    def add(self, sample: Sample) -> None:
        heapq.heappush(self._waiting, (sample.rank, sample))

    def schedule(self, *, may_preempt: bool = True) -> Plan | None:
        """The next step, all counts moved on as if it were done.

        None: a sample must give way and may not, since tokens of it are under way.
        """
        draft = _Draft(self._config.max_num_batched_tokens)
        begun: list[Sample] = []
        for sample in list(self.running):
            if sample.row is None or sample.is_complete:
                continue
            if not sample.is_decoding:
                begun.append(sample)
            elif len(draft.decodes) < draft.budget:
                if not self._make_room(sample, draft, may_preempt):
                    return None
                if sample.row is not None:
                    draft.decodes.append(sample)
        draft.budget -= len(draft.decodes)
        for sample in draft.decodes:
            sample.num_computed += 1
            sample.num_drawn += 1
        self._plan_prompts([sample for sample in begun if sample.row is not None], draft)
        grown = [*draft.started, *(sample for sample in self._grown if sample.row is not None)]
        self._grown = []
        return Plan(
            tuple(draft.prefills),
            tuple(draft.decodes),
            tuple(draft.started),
            tuple(grown),
            tuple(draft.copies),
        )

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
            self._waiting = [entry for entry in self._waiting if entry[1] is not sample]
            heapq.heapify(self._waiting)

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
            victim = max(self.running, key=lambda s: s.rank)
            self._preempt(victim)
            if victim is sample:
                return True
            if victim in draft.decodes:
                draft.decodes.remove(victim)
        sample.blocks += blocks
        self._grown.append(sample)
        return True

    def _plan_prompts(self, begun: list[Sample], draft: _Draft) -> None:
        """What is left of the step, to prompts in order of rank."""
        begun.sort(key=lambda sample: sample.rank, reverse=True)
        while draft.budget > 0 and (sample := self._next_prompt(begun, draft)) is not None:
            self._plan_prefill(sample, draft)

    def _next_prompt(self, begun: list[Sample], draft: _Draft) -> Sample | None:
        """The first in line, of those that are begun (the last of the list first) and those that wait."""
        if self._waiting and self._free_rows:
            rank, sample = self._waiting[0]
            if (not begun or rank < begun[-1].rank) and self._admit(sample):
                draft.started.append(sample)
                return sample
        return begun.pop() if begun else None

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
        heapq.heappop(self._waiting)
        sample.blocks = [*found.blocks, *blocks]
        sample.num_computed = len(found.blocks) * pool.block_size
        sample.num_published, sample.content = len(found.blocks), found.content
        if sample.num_cached is None:
            sample.num_cached = min(sample.num_computed, sample.num_prompt)
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
        while waiting and self._free_rows and self._has_room(num_own):
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
