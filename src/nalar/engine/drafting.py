"""Guesses by the model's block of multi-token prediction, over a layer of the cache of its own.

A token's entry is made of the token and of the model's state before it, and lies in the token's own slot, so a
block of the cache depends on nothing behind it and can be shared by content. The first token of a sequence has
no entry. Guesses need not be exact, and nothing that comes out depends on them.

N tokens · B rows · C tokens of a row that have no entry yet · D hidden · K guesses · P blocks of S slots · V vocabulary
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from nalar.engine.rows import Rows
from nalar.engine.sampler import draw
from nalar.engine.scheduler import Plan, Prefill
from nalar.kernels.documents import Documents
from nalar.kernels.paging import Chunk, Paging

FIRST = 1
"""Position of the first entry."""

Part = tuple[Prefill, Tensor]
"""Some tokens of a prompt, and their states [T, D]."""


class DraftModel(Protocol):
    """What drafting needs of a model."""

    def draft(
        self, states_ND: Tensor, ids_N: Tensor, cache_PSC: Tensor, paging: Paging, /
    ) -> Tensor:
        """Tokens and the model's states before them to states_ND of the block; their entries are written."""
        ...

    def logits(self, states: Tensor, /) -> Tensor:
        """float32, [..., V]."""
        ...


class Drafter:
    """Keeps the entries of the block up with what the model has computed, and guesses from them."""

    def __init__(
        self, model: DraftModel, rows: Rows, num_drafts: int, block_size: int, device: torch.device
    ) -> None:
        self._model, self._rows, self._device = model, rows, device
        self._width, self._block_size = num_drafts + 1, block_size
        self._states_RCD: Tensor | None = None
        """Of each row's last step; the first `num_new` of them stand before tokens that have no entry."""

    def forget(self) -> None:
        """All states, with the cache that their entries were for."""
        self._states_RCD = None

    def guess(self, plan: Plan, cache_PSC: Tensor) -> Tensor | None:
        """int64 [B, K]: guesses for the samples that decode, of which each uses as many as are planned for it.

        None: none are planned, or needed; the entries of accepted tokens are written in any case.
        """
        if not plan.decodes:
            return None
        batch = self._rows.batch(plan.decodes)
        rows_B, newest_B = batch.rows_B, self._rows.positions_R[batch.rows_B]
        states_BD = self._catch_up(plan, rows_B, newest_B, cache_PSC)
        num_drafts_B = self._tensor(plan.num_drafts)
        shaping = self._rows.shaping(*batch)
        guesses: list[Tensor] = []
        for i in range(1, max(plan.num_drafts) + 1):
            if guesses:
                # The guess before this one has a slot where it is computed by the model too.
                counts_B = (num_drafts_B >= i).long()
                positions_B1, slots_B1 = self._rows.window(rows_B, newest_B + i - 1, counts_B, 1)
                paging = self._paging(plan, positions_B1, slots_B1, rows_B)
                states_BD = self._model.draft(states_BD, guesses[-1], cache_PSC, paging)
            # By the number that the model will draw by at that place: like distributions then give like tokens.
            uniform_B = self._rows.uniforms(rows_B, newest_B + i)
            guesses.append(draw(self._model.logits(states_BD), uniform_B, shaping).ids_B)
        return torch.stack(guesses, 1) if guesses else None

    def keep_up(self, parts: Sequence[Part], cache_PSC: Tensor) -> None:
        """Write the entries of prompts that the model has just computed."""
        parts = sorted(parts, key=lambda part: _first(part[0]) > FIRST)
        ids: list[int] = []
        states, positions, slots = [], [], []
        lengths: list[int] = []
        chunks: list[Chunk] = []
        for prefill, states_TD in parts:
            sample = prefill.sample
            first = _first(prefill)
            count = prefill.end - first
            if count <= 0:
                continue
            before_TD = states_TD[max(first - 1 - prefill.start, 0) : len(states_TD) - 1]
            if first == prefill.start:
                assert self._states_RCD is not None
                before_TD = torch.cat([self._states_RCD[sample.row, :1], before_TD])
            positions_T = torch.arange(first, prefill.end, device=self._device)
            blocks_M = self._tensor(sample.blocks)
            ids += sample.token_ids[first : prefill.end]
            states.append(before_TD)
            positions.append(positions_T)
            slots.append(
                blocks_M[positions_T // self._block_size] * self._block_size
                + positions_T % self._block_size
            )
            if first == FIRST:
                lengths.append(count)
            else:
                blocks_M = blocks_M[: -(-prefill.end // self._block_size)]
                chunks.append(Chunk(count, prefill.end, blocks_M))
        if ids:
            fresh = Documents.of(lengths, device=self._device) if lengths else None
            paging = Paging(
                torch.cat(positions), torch.cat(slots), fresh, tuple(chunks), first=FIRST
            )
            self._model.draft(torch.cat(states), self._tensor(ids), cache_PSC, paging)

    def remember(self, plan: Plan, parts: Sequence[Part], states_DD: Tensor) -> None:
        """Keep the states before tokens that come next. states_DD: in the order of `plan.drawing`."""
        if self._states_RCD is None:
            shape = (self._rows.nobody + 1, self._width, states_DD.shape[-1])
            self._states_RCD = states_DD.new_zeros(shape)
        for prefill, states_TD in parts:
            if not prefill.draws:
                self._states_RCD[prefill.sample.row, 0] = states_TD[-1]
        if len(states_DD):
            rows = self._tensor([sample.row for sample in plan.drawing])
            self._states_RCD[rows, self._tensor(plan.places)] = states_DD

    def _catch_up(self, plan: Plan, rows_B: Tensor, newest_B: Tensor, cache_PSC: Tensor) -> Tensor:
        """The entries of the tokens that the last step gave; [B, D] of the newest."""
        assert self._states_RCD is not None
        counts = [sample.num_new for sample in plan.decodes]
        C = max(counts)
        ids = [s.token_ids[-n:] + [0] * (C - n) for s, n in zip(plan.decodes, counts, strict=True)]
        counts_B = self._tensor(counts)
        positions_BC, slots_BC = self._rows.window(rows_B, newest_B - counts_B + 1, counts_B, C)
        states_ND = self._states_RCD[rows_B, :C].flatten(0, 1)
        paging = self._paging(plan, positions_BC, slots_BC, rows_B)
        ids_N = self._tensor(ids).flatten()
        out_BCD = self._model.draft(states_ND, ids_N, cache_PSC, paging).unflatten(0, (-1, C))
        newest_BD: Tensor = out_BCD[torch.arange(len(counts), device=self._device), counts_B - 1]
        return newest_BD

    def _paging(self, plan: Plan, positions_BQ: Tensor, slots_BQ: Tensor, rows_B: Tensor) -> Paging:
        most = max(len(sample.blocks) for sample in plan.decodes)
        return Paging(
            positions_BQ.flatten(),
            slots_BQ.flatten(),
            tables_BM=self._rows.tables_RM[rows_B, :most],
            row_tokens=positions_BQ.shape[1],
            first=FIRST,
        )

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _first(prefill: Prefill) -> int:
    """Position of its first token that has no entry yet."""
    return max(prefill.start, prefill.sample.num_found, FIRST)
