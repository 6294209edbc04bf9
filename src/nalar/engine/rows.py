"""What the device keeps of each running sample, one row each: a step is set up by a few gathers, not by Python lists.

R rows, and one more that belongs to nobody · B some of them · M blocks of the longest sample · V vocabulary
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nalar.engine.blocks import NOBODY
from nalar.engine.sample import Sample
from nalar.kernels.grouped import count
from nalar.kernels.sampling import Penalties, Shaping, stream_key, uniforms

MOST_BATCHES = 8
"""Kept at a time: those that decode, and those that draw, are often the same as in the step before."""
STAGED_BYTES = 2**15
"""CUDA copies little to a place of its own and goes on; more than 64 KiB it sends when the device is there, unless
the memory is pinned."""


class Kind(NamedTuple):
    """What it takes to draw for some rows."""

    is_plain: bool
    """Every row draws from the model's own distribution."""
    cuts: bool
    """Some row uses top-k, top-p or min-p."""
    penalizes: bool
    num_top: int | None
    """Most of the likeliest ids that a row asks for."""


class Batch(NamedTuple):
    """Some rows that draw together. Stays as long as they do."""

    rows_B: Tensor
    kind: Kind


class Rows:
    """Memory for R rows; nothing here waits for the device."""

    def __init__(
        self, num_rows: int, num_blocks: int, block_size: int, vocab_size: int, device: torch.device
    ) -> None:
        def new(dtype: torch.dtype, *width: int) -> Tensor:
            return torch.zeros((num_rows + 1, *width), dtype=dtype, device=device)

        self.nobody = num_rows
        self.block_size, self._vocab_size, self._device = block_size, vocab_size, device
        self.ids_R = new(torch.int64)
        """The newest token, which a sample that decodes has drawn but not computed."""
        self.positions_R = new(torch.int64)
        """Where it stands."""
        self.tables_RM = new(torch.int64, num_blocks)
        self._sent = [0] * (num_rows + 1)
        """Blocks in each row of the table."""
        self.keys_R = new(torch.int64)
        self.temperature_R = new(torch.float32)
        self._top_k_R = new(torch.int64)
        self._top_p_R = new(torch.float32)
        self._min_p_R = new(torch.float32)
        self._penalties_R3 = new(torch.float32, 3)
        self._counts_RV: Tensor | None = None
        """int32: how often the output holds each id. Only once somebody asks for penalties."""
        self._in_prompt_RV: Tensor | None = None
        self._batches: dict[tuple[int, ...], Batch] = {}

    def settle(self, samples: Sequence[Sample]) -> None:
        """The newest tokens as the host knows them: of guesses it has taken the right ones alone."""
        if samples:
            rows = self._tensor([sample.row for sample in samples])
            self.ids_R[rows] = self._tensor([s.token_ids[-1] for s in samples])
            self.positions_R[rows] = self._tensor([len(s.token_ids) - 1 for s in samples])

    def start(self, samples: Sequence[Sample]) -> None:
        """Set up the rows of samples that have just got one."""
        rows = self._tensor([sample.row for sample in samples])
        params = [sample.request.params for sample in samples]
        keys = [
            stream_key(s.request.params.seed, s.request.first_stream + s.sample_id) for s in samples
        ]
        top_k = [min(p.top_k or self._vocab_size, self._vocab_size) for p in params]
        # The last token known, of prompt or output; the next one drawn stands behind it.
        self.ids_R[rows] = self._tensor([s.token_ids[-1] for s in samples])
        self.positions_R[rows] = self._tensor([len(s.token_ids) - 1 for s in samples])
        self.keys_R[rows] = self._tensor(keys)
        self.temperature_R[rows] = self._tensor([p.temperature for p in params], torch.float32)
        self._top_k_R[rows] = self._tensor(top_k)
        self._top_p_R[rows] = self._tensor([p.top_p for p in params], torch.float32)
        self._min_p_R[rows] = self._tensor([p.min_p for p in params], torch.float32)
        penalties = [
            (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) for p in params
        ]
        self._penalties_R3[rows] = self._tensor(penalties, torch.float32)
        for sample in samples:
            assert sample.row is not None
            self._sent[sample.row] = 0
            if sample.request.params.has_penalties:
                self._recount(sample)
        self._batches.clear()

    def send_tables(self, samples: Sequence[Sample]) -> None:
        """Write blocks that samples have got since last time into the table."""
        rows: list[int] = []
        places: list[int] = []
        blocks: list[int] = []
        for sample in samples:
            row = sample.row
            assert row is not None
            sent, own = self._sent[row], len(sample.blocks)
            if own > sent:
                rows += [row] * (own - sent)
                places += range(sent, own)
                blocks += sample.blocks[sent:]
                self._sent[row] = own
        if blocks:
            self.tables_RM[self._tensor(rows), self._tensor(places)] = self._tensor(blocks)

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """The rows of these samples, made once for as long as they run together."""
        rows = tuple(sample.row for sample in samples if sample.row is not None)
        if rows not in self._batches:
            params = [sample.request.params for sample in samples]
            tops = [p.logprobs for p in params if p.logprobs is not None]
            if len(self._batches) >= MOST_BATCHES:
                self._batches.clear()
            self._batches[rows] = Batch(
                self._tensor(rows),
                Kind(
                    is_plain=all(p.is_plain for p in params),
                    cuts=any(p.cuts for p in params),
                    penalizes=any(p.has_penalties for p in params),
                    num_top=max(tops, default=None),
                ),
            )
        return self._batches[rows]

    def slots(self, rows_B: Tensor, positions_B: Tensor) -> Tensor:
        """Where the entries of these positions lie: int64, of the shape of both."""
        size = self.block_size
        blocks_B = self.tables_RM[rows_B, positions_B.div(size, rounding_mode="floor")]
        return blocks_B * size + positions_B % size

    def window(
        self, rows_B: Tensor, starts_B: Tensor, counts_B: Tensor, width: int
    ) -> tuple[Tensor, Tensor]:
        """Positions [B, Q] of up to `width` neighbouring tokens of each row, and their slots.

        What is beyond a row's count repeats the position before it, and is written to nobody's block.
        """
        steps_Q = torch.arange(width, device=self._device)
        positions_BQ = starts_B[:, None] + torch.minimum(steps_Q, counts_B[:, None] - 1)
        slots_BQ = self.slots(rows_B[:, None].expand_as(positions_BQ), positions_BQ)
        return positions_BQ, torch.where(steps_Q < counts_B[:, None], slots_BQ, NOBODY)

    def uniforms(self, rows_B: Tensor, at_B: Tensor) -> Tensor:
        """The random numbers that go with the tokens at these positions."""
        return uniforms(self.keys_R[rows_B], at_B)

    def shaping(self, rows_B: Tensor, kind: Kind) -> Shaping | None:
        if kind.is_plain:
            return None
        return Shaping(
            self.temperature_R[rows_B],
            self._top_k_R[rows_B],
            self._top_p_R[rows_B],
            self._min_p_R[rows_B],
            kind.cuts,
            self._penalties(rows_B) if kind.penalizes else None,
        )

    def accept(self, rows_B: Tensor, ids_B: Tensor, positions_B: Tensor) -> None:
        """The tokens just drawn and where they stand."""
        self.ids_R[rows_B] = ids_B
        self.positions_R[rows_B] = positions_B
        self.count(rows_B, ids_B)

    def count(self, rows_B: Tensor, ids_B: Tensor) -> None:
        """One more of each in its row's output, where somebody needs to know."""
        if self._counts_RV is not None:
            self._counts_RV[rows_B, ids_B] += 1

    def _penalties(self, rows_B: Tensor) -> Penalties:
        assert self._counts_RV is not None and self._in_prompt_RV is not None
        repetition_B, presence_B, frequency_B = self._penalties_R3[rows_B].unbind(1)
        counts_BV, in_prompt_BV = self._counts_RV[rows_B], self._in_prompt_RV[rows_B]
        return Penalties(repetition_B, presence_B, frequency_B, counts_BV, in_prompt_BV)

    def _recount(self, sample: Sample) -> None:
        """What a sample's prompt and output hold so far."""
        if self._counts_RV is None or self._in_prompt_RV is None:
            shape = (self.nobody + 1, self._vocab_size)
            self._counts_RV = torch.zeros(shape, dtype=torch.int32, device=self._device)
            self._in_prompt_RV = torch.zeros(shape, dtype=torch.bool, device=self._device)
        output = self._tensor(sample.output_ids)
        self._counts_RV[sample.row] = count(output, self._vocab_size)
        self._in_prompt_RV[sample.row] = False
        self._in_prompt_RV[sample.row, self._tensor(sample.request.prompt_ids)] = True

    def _tensor(self, values: Sequence[object], dtype: torch.dtype = torch.int64) -> Tensor:
        return on_device(values, dtype, self._device)


def on_device(values: Sequence[object], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Without waiting for what the device is doing, as `torch.tensor(..., device=...)` would."""
    return to_device(torch.tensor(values, dtype=dtype), device)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """The same of a tensor on the host."""
    if device.type == "cuda" and x.nbytes > STAGED_BYTES:
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
