"""The pool against a model in which every block is a list of tokens."""

import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nalar.engine.blocks import NOBODY, UNKNOWN, BlockPool

SIZE, NUM_BLOCKS = 2, 8
SALTS = ("", "a")

sequences = st.lists(st.integers(0, 1), max_size=12)


def test_blocks_need_no_torch():
    code = (
        "import sys, nalar.engine.blocks, nalar.engine.scheduler; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def published(pool, tokens, salt=""):
    """Blocks of one owner, filled with these tokens and offered to others."""
    blocks = pool.allocate(len(tokens) // pool.block_size)
    assert blocks is not None
    content = 0
    for i, block in enumerate(blocks):
        own = tokens[i * pool.block_size : (i + 1) * pool.block_size]
        content = pool.publish(block, content, own, salt)
    return blocks


def test_the_longest_run_of_full_blocks_is_found_and_no_more():
    pool = BlockPool(10, 2)
    blocks = published(pool, [1, 2, 3, 4])
    assert list(pool.find([1, 2, 3, 4, 5]).blocks) == blocks
    assert list(pool.find([1, 2, 3]).blocks) == blocks[:1]
    assert pool.find([3, 4]).blocks == ()  # the same tokens behind others are another content
    assert pool.find([1, 2, 3, 4], "other").blocks == ()


def test_what_was_given_back_is_found_until_its_memory_is_needed_the_oldest_and_the_last_first():
    pool = BlockPool(5, 2)
    old = published(pool, [1, 2, 3, 4])
    new = published(pool, [5, 6, 7, 8])
    pool.release(old)
    pool.release(new)
    assert list(pool.find([1, 2, 3, 4]).blocks) == old
    assert pool.allocate(1) == [old[1]]
    assert list(pool.find([1, 2, 3, 4]).blocks) == old[:1]
    assert list(pool.find([5, 6, 7, 8]).blocks) == new
    assert pool.allocate(4) is None and pool.num_free == 3


def test_a_block_whose_beginning_is_gone_is_not_found_behind_its_return():
    pool = BlockPool(5, 2)
    first, second = published(pool, [1, 2, 3, 4])
    pool.share([second])
    pool.release([first, second])
    assert pool.allocate(3) is not None  # the first was taken, the second has an owner left
    pool.release([second])
    [again] = pool.allocate(1) or []
    content = pool.publish(again, 0, [1, 2])
    assert content not in (0, UNKNOWN)
    assert pool.find([1, 2, 3, 4]).blocks == (again,)


def test_a_block_is_published_once_even_where_the_block_before_it_has_got_a_new_number():
    pool = BlockPool(6, 2)
    [twin] = published(pool, [1, 2])
    pool.release([twin])
    pool.share([twin])
    own, behind = pool.allocate(2) or []
    before = pool.publish(own, 0, [1, 2])  # the twin's
    content = pool.publish(behind, before, [3, 4])
    pool.release([twin])
    others = pool.allocate(3)  # the twin is gone
    assert others is not None and twin in others
    renewed = pool.publish(own, 0, [1, 2])
    assert renewed != before
    assert pool.publish(behind, renewed, [3, 4]) == content
    pool.release([own, behind])
    assert pool.allocate(2) is not None
    assert pool.find([1, 2, 3, 4]).blocks == ()


@pytest.mark.parametrize("caching", [True, False])
def test_nothing_is_found_after_a_flush_or_without_caching(caching):
    pool = BlockPool(5, 2, caching=caching)
    blocks = published(pool, [1, 2, 3, 4])
    assert bool(pool.find([1, 2, 3, 4]).blocks) is caching
    pool.flush()
    assert pool.find([1, 2, 3, 4]).blocks == ()
    pool.release(blocks)
    assert pool.num_free == 4


class Owner:
    """A sequence that holds blocks, as a scheduler would let it."""

    def __init__(self, tokens, salt, blocks, content, num_published):
        self.tokens, self.salt, self.blocks = tokens, salt, blocks
        self.content, self.num_published = content, num_published


class Pool(RuleBasedStateMachine):
    """Owners come, fill their blocks, publish them, share them and go."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, SIZE)
        self.owners: list[Owner] = []
        self.memory: dict[int, tuple[int, str, tuple[int, ...]]] = {}
        """Of each block: version of the weights, salt, its tokens and all before them."""
        self.version = 0

    @rule(tokens=sequences, salt=st.sampled_from(SALTS))
    def come(self, tokens, salt):
        found = self.pool.find(tokens, salt)
        for i, block in enumerate(found.blocks):
            assert self.memory[block] == (self.version, salt, tuple(tokens[: (i + 1) * SIZE]))
        free = self.pool.num_free
        self.pool.share(found.blocks)
        own = self.pool.allocate(-(-len(tokens) // SIZE) - len(found.blocks))
        if own is None:
            self.pool.release(found.blocks)
            assert self.pool.num_free == free
            return
        for i, block in enumerate(own, len(found.blocks)):
            self.memory[block] = (self.version, salt, tuple(tokens[: (i + 1) * SIZE]))
        blocks = [*found.blocks, *own]
        self.owners.append(Owner(tokens, salt, blocks, found.content, len(found.blocks)))

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def publish(self, data):
        owner = data.draw(st.sampled_from(self.owners))
        i = owner.num_published
        if i < len(owner.tokens) // SIZE:
            tokens = owner.tokens[i * SIZE : (i + 1) * SIZE]
            owner.content = self.pool.publish(owner.blocks[i], owner.content, tokens, owner.salt)
            owner.num_published += 1

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def fork(self, data):
        leader = data.draw(st.sampled_from(self.owners))
        full = len(leader.tokens) // SIZE
        self.pool.share(leader.blocks[:full])
        self.owners.append(
            Owner(
                leader.tokens[: full * SIZE],
                leader.salt,
                leader.blocks[:full],
                leader.content,
                min(leader.num_published, full),
            )
        )

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def go(self, data):
        owner = data.draw(st.sampled_from(self.owners))
        self.owners.remove(owner)
        self.pool.release(owner.blocks)

    @rule()
    def flush(self):
        self.pool.flush()
        self.version += 1
        for owner in self.owners:
            owner.content = UNKNOWN

    @invariant()
    def references_are_owners(self):
        held = [block for owner in self.owners for block in owner.blocks]
        assert NOBODY not in held
        assert self.pool._references == [held.count(block) for block in range(NUM_BLOCKS)]
        assert self.pool.num_free == NUM_BLOCKS - 1 - len(set(held))
        assert not set(self.pool._free) & set(held)

    @invariant()
    def what_can_be_found_is_kept_in_one_place(self):
        pool = self.pool
        assert set(pool._key_of) == set(pool._content_of) == set(pool._block_of.values())
        assert all(pool._block_of[key] == block for block, key in pool._key_of.items())

    def teardown(self):
        for owner in self.owners:
            self.pool.release(owner.blocks)
        assert self.pool.num_free == NUM_BLOCKS - 1


Pool.TestCase.settings = settings(deadline=None)
test_no_sequence_of_owners_breaks_the_pool = Pool.TestCase
