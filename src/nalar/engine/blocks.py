"""Which block of the cache belongs to whom, and which full blocks can be found again. Imports no torch.

A block holds `block_size` neighbouring tokens of a sequence. Sequences that begin alike share full
blocks by reference count. A full block that nobody uses keeps its content, and can be found by it, until
its memory is needed: the one unused for longest goes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

NOBODY = 0
"""The block that padding is written to."""

Content = int
"""A full block's tokens and all before them, as a number that no other content ever gets."""

_ROOT: Content = 0
UNKNOWN: Content = -1
"""Stands before a block that must not be found, whatever it holds."""


@dataclass(frozen=True, slots=True)
class Found:
    """The longest run of full blocks with which a sequence begins."""

    blocks: tuple[int, ...]
    content: Content
    """Of the last of them."""


class BlockPool:
    """Blocks 1 to num_blocks - 1."""

    def __init__(self, num_blocks: int, block_size: int, *, caching: bool = True) -> None:
        self.num_blocks, self.block_size, self.caching = num_blocks, block_size, caching
        self._references = [0] * num_blocks
        # In the order in which they were given back: a dict is a queue from which any one can be taken.
        self._free: dict[int, None] = dict.fromkeys(range(1, num_blocks))
        self._block_of: dict[tuple[Content, tuple[int, ...], str], int] = {}
        self._key_of: dict[int, tuple[Content, tuple[int, ...], str]] = {}
        self._content_of: dict[int, Content] = {}
        self._last_content = _ROOT

    @property
    def num_free(self) -> int:
        """Blocks that nobody uses, those with content to be found included."""
        return len(self._free)

    def find(self, token_ids: Sequence[int], salt: str = "") -> Found:
        """Full blocks that hold the beginning of these tokens. They stay free until shared."""
        blocks: list[int] = []
        content = _ROOT
        size = self.block_size
        for at in range(0, len(token_ids) - size + 1, size):
            block = self._block_of.get((content, tuple(token_ids[at : at + size]), salt))
            if block is None:
                break
            blocks.append(block)
            content = self._content_of[block]
        return Found(tuple(blocks), content)

    def allocate(self, count: int) -> list[int] | None:
        """Blocks for one owner, or None where there are too few."""
        if count > len(self._free):
            return None
        blocks = list(islice(self._free, count))
        for block in blocks:
            del self._free[block]
            self._forget(block)
            self._references[block] = 1
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """One more owner for each of these."""
        for block in blocks:
            self._free.pop(block, None)
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One owner less for each. The last of a sequence goes first: its beginning is more useful to others."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None

    def publish(
        self, block: int, before: Content, token_ids: Sequence[int], salt: str = ""
    ) -> Content:
        """Let a full block be found by its content; returns the content to pass for the block after it.

        before: the content of the block before it, 0 for the first of a sequence.
        """
        if not self.caching or before == UNKNOWN:
            return UNKNOWN
        if block in self._content_of:
            # By another owner, and perhaps behind a block that can no longer be found.
            return self._content_of[block]
        key = (before, tuple(token_ids), salt)
        twin = self._block_of.get(key)
        if twin is not None:
            return self._content_of[twin]
        self._last_content += 1
        self._block_of[key], self._key_of[block] = block, key
        self._content_of[block] = self._last_content
        return self._last_content

    def flush(self) -> None:
        """Nothing can be found any more; who uses blocks keeps them. For new weights."""
        self._block_of.clear()
        self._key_of.clear()
        self._content_of.clear()

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key], self._content_of[block]
