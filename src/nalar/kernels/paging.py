"""Where the tokens of one step of the engine lie in a cache of blocks, and how they are written and read.

A cache is [P, S, C]: P blocks of S slots, one slot a token. Block 0 is nobody's: padding is written there.
"""

# N tokens of the step · P blocks · S slots of each · C what a token leaves in the cache
# B rows · Q tokens of each · M blocks of a row · T = M*S positions

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nalar.kernels.documents import Documents

Held = dict[int, Tensor]
"""By the place of a layer's cache: what rows had in it [B, T, C] when they were last read."""

Hidden = Callable[[], Tensor]
"""[B, Q, T], additive: 0 from `first` up to each row's position, -inf elsewhere."""


@dataclass(frozen=True)
class Chunk:
    """Some tokens of one sequence, behind others that are in the cache."""

    tokens: int
    end: int
    """Position after the last of them."""
    blocks_M: Tensor
    """int64: the blocks that hold positions 0 to end."""

    @functools.cached_property
    def hidden_QT(self) -> Tensor:
        """float32, additive: 0 from position 0 up to each token's, -inf elsewhere. Made once for all layers."""
        keys_T = torch.arange(self.end, device=self.blocks_M.device)
        out_QT = keys_T > keys_T[self.end - self.tokens :, None]
        return torch.zeros(out_QT.shape, device=keys_T.device).masked_fill_(out_QT, -torch.inf)


@dataclass(frozen=True)
class Paging:
    """The tokens of a step, in this order: whole prompts, chunks, then rows of equally many tokens."""

    positions_N: Tensor
    """int64: the place of each token in its sequence."""
    slots_N: Tensor
    """int64: where its entry goes, block * S + offset. No two alike but for padding."""
    fresh: Documents | None = None
    """The first tokens: whole prompts, with nothing before them."""
    chunks: tuple[Chunk, ...] = ()
    tables_BM: Tensor | None = None
    """int64: the blocks of each row, as many as the longest has."""
    row_tokens: int = 1
    """Q."""
    first: int = 0
    """Keys before this position are seen by nobody."""
    tiled: bool = False
    """Deterministic: a row's numbers depend on nothing else in the batch. There are rows alone, always as many."""
    held: Held | None = None
    """For the next step of the same rows, each one token further. None: nothing is held."""

    @property
    def num_fresh(self) -> int:
        return 0 if self.fresh is None else len(self.fresh.positions_N)

    @property
    def num_in_rows(self) -> int:
        """Tokens of the rows: the last ones."""
        return 0 if self.tables_BM is None else len(self.tables_BM) * self.row_tokens

    @property
    def row_positions_N(self) -> Tensor:
        """Those of the rows, without prompts and chunks."""
        return self.positions_N[len(self.positions_N) - self.num_in_rows :]

    @functools.cached_property
    def held_slots_N(self) -> Tensor:
        """int64: where the entries of rows of one token go in what is held of them."""
        assert self.tables_BM is not None and self.held, "rows, and something that is held of them"
        B, T, _ = next(iter(self.held.values())).shape
        return torch.arange(0, B * T, T, device=self.positions_N.device) + self.positions_N

    def hidden(self, block_size: int, dtype: torch.dtype) -> Hidden:
        """What is made when it is first asked for, and once: not every form of attention needs it."""
        return functools.cache(functools.partial(self._hidden, block_size, dtype))

    def _hidden(self, block_size: int, dtype: torch.dtype) -> Tensor:
        assert self.tables_BM is not None, "rows"
        B, M = self.tables_BM.shape
        positions_BQ = self.row_positions_N.view(B, -1)
        keys_T = torch.arange(M * block_size, device=positions_BQ.device)
        hidden_BQT = torch.zeros(B, self.row_tokens, len(keys_T), dtype=dtype, device=keys_T.device)
        out_BQT = keys_T > positions_BQ[..., None]
        if self.first:
            out_BQT |= keys_T < self.first
        return hidden_BQT.masked_fill_(out_BQT, -torch.inf)


def write(cache_PSC: Tensor, slots_N: Tensor, entries_NC: Tensor) -> None:
    cache_PSC.view(-1, cache_PSC.shape[-1]).index_copy_(0, slots_N, entries_NC)


def read(cache_PSC: Tensor, blocks_XM: Tensor) -> Tensor:
    """The entries of whole blocks in a row: blocks [..., M] to [..., M*S, C]."""
    flat = cache_PSC.flatten(1).index_select(0, blocks_XM.flatten())
    return flat.view(*blocks_XM.shape[:-1], -1, cache_PSC.shape[-1])


def read_rows(cache_PSC: Tensor, paging: Paging) -> Tensor:
    """What the cache holds of `paging`'s rows, their newest entries included: [B, T, C].

    Where the step before held it the newest entry of each is added, which moves a T-th of the memory.
    """
    assert paging.tables_BM is not None, "rows"
    held = paging.held
    if held is None:
        return read(cache_PSC, paging.tables_BM)
    place, T = cache_PSC.data_ptr(), paging.tables_BM.shape[1] * cache_PSC.shape[1]
    held_BTC = held.get(place)
    if held_BTC is None or held_BTC.shape[1] != T:
        held_BTC = held[place] = read(cache_PSC, paging.tables_BM)
    else:
        entries_NC = cache_PSC.flatten(0, 1).index_select(0, paging.slots_N)
        held_BTC.flatten(0, 1).index_copy_(0, paging.held_slots_N, entries_NC)
    return held_BTC
