"""Documents one after another in a flat batch, and the same documents side by side, as attention wants them."""

# N tokens of the batch · M some of them · S slots of all sides, padding included
# B documents of a side · T slots of each

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LEAST_FILLED = 0.7
"""A side takes documents down to this share of its longest: fewer sides cost fewer calls, more cost less padding."""


MOST_SIDES = 64
"""Of documents of up to 2**31 tokens."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a flat batch lie. Attention runs within each, never across.

    Everything but attention is done token by token on [N, ...]; for attention, documents of like
    length form a side [B, T, ...], short ones padded by repeating their last token. A causal mask
    keeps padding from all real tokens.
    """

    positions_N: Tensor
    """int64: the place of each token in its document, from 0."""
    sides: tuple[tuple[int, int], ...]
    """(B, T) of each side."""
    slots_S: Tensor | None
    """int64: the token in each slot, side after side; None where slots are the batch as it stands."""
    back_N: Tensor | None
    """int64: the slot of each token."""
    lengths: tuple[int, ...]
    """Tokens of each document, in the order of the batch."""
    sides_J2: Tensor
    """`sides` on the CPU, behind them zeros: int64 of one shape for all batches, as torch.compile likes it."""

    @classmethod
    def of(cls, lengths: Sequence[int], *, device: torch.device | str = "cpu") -> "Documents":
        """lengths: tokens of each document, at least 1, in the order of the batch."""
        if torch.device(device).type != "cpu" and lengths and min(lengths) == max(lengths):
            return cls.rows(len(lengths), lengths[0], device=device)  # no copies around attention
        starts = [0, *accumulate(lengths)]
        by_length = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        sides: list[tuple[int, int]] = []
        slots: list[npt.NDArray[np.int64]] = []
        back = np.empty(starts[-1], dtype=np.int64)
        offsets = np.arange(max(lengths, default=0))
        at = first = 0
        while first < len(by_length):
            longest = lengths[by_length[first]]
            end = first
            while end < len(by_length) and lengths[by_length[end]] >= LEAST_FILLED * longest:
                i = by_length[end]
                slots.append(starts[i] + np.minimum(offsets[:longest], lengths[i] - 1))
                back[starts[i] : starts[i + 1]] = at + offsets[: lengths[i]]
                at += longest
                end += 1
            sides.append((end - first, longest))
            first = end
        positions = np.concatenate([offsets[:n] for n in lengths])
        return cls(
            without_waiting(torch.from_numpy(positions), device),
            tuple(sides),
            without_waiting(torch.from_numpy(np.concatenate(slots)), device),
            without_waiting(torch.from_numpy(back), device),
            tuple(lengths),
            _padded(sides),
        )

    @classmethod
    def rows(cls, rows: int, tokens: int, *, device: torch.device | str = "cpu") -> "Documents":
        """A rectangle: every row is a document."""
        positions = torch.arange(tokens, device=device).repeat(rows)
        return cls(
            positions, ((rows, tokens),), None, None, (tokens,) * rows, _padded([(rows, tokens)])
        )

    def tails(self) -> tuple["Documents", Tensor]:
        """Each document without its first token, those that have more; and int64 [M]: the tokens that are left.

        Known from the lengths alone, so nobody waits for the device.
        """
        device = self.positions_N.device
        starts = [0, *accumulate(self.lengths)]
        left = [torch.arange(start + 1, end) for start, end in pairwise(starts)]
        lengths = [n - 1 for n in self.lengths if n > 1]
        if not lengths:
            return Documents.rows(0, 0, device=device), self.positions_N[:0]
        at_M = without_waiting(torch.cat(left), device)
        if self.slots_S is None:
            return Documents.rows(len(lengths), lengths[0], device=device), at_M
        return Documents.of(lengths, device=device), at_M

    @property
    def count(self) -> int:
        """Documents."""
        return len(self.lengths)

    @property
    def document_N(self) -> Tensor:
        """int64: which document each token is of, from 0."""
        return (self.positions_N == 0).cumsum(0) - 1

    def into_slots(self, x_N: Tensor) -> Tensor:
        """[N, ...] to [S, ...]."""
        if self.slots_S is None or self.back_N is None:
            return x_N
        x_S: Tensor = _Reorder.apply(x_N, self.slots_S, self.back_N)  # type: ignore[no-untyped-call]
        return x_S

    def out_of_slots(self, x_S: Tensor) -> Tensor:
        """[S, ...] back to [N, ...]; what stands in padding is dropped."""
        return x_S if self.back_N is None else x_S.index_select(0, self.back_N)

    def spread(self, x_N: Tensor) -> list[Tensor]:
        """[N, ...] to one [B, T, ...] a side."""
        parts = self.into_slots(x_N).split([rows * tokens for rows, tokens in self.sides])
        return [part.unflatten(0, side) for part, side in zip(parts, self.sides, strict=True)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One [B, T, ...] a side back to [N, ...]; what stands in padding is dropped."""
        return self.out_of_slots(torch.cat([part.flatten(0, 1) for part in parts]))


def without_waiting(x: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU on a device. Out of ordinary memory a GPU would be done with all else before it copied."""
    if torch.device(device).type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def _padded(sides: Sequence[tuple[int, int]]) -> Tensor:
    return torch.tensor([*sides, *[(0, 0)] * (MOST_SIDES - len(sides))], dtype=torch.int64)


class _Reorder(torch.autograd.Function):
    """Tokens into slots. No gradient comes to padding (its outputs are dropped and a causal mask hides it),
    so the way back is a gather as well, where the general one would add up."""

    @staticmethod
    def forward(ctx: Any, x_N: Tensor, slots_S: Tensor, back_N: Tensor) -> Tensor:
        ctx.save_for_backward(back_N)
        return x_N.index_select(0, slots_S)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (back_N,) = ctx.saved_tensors
        return grads[0].index_select(0, back_N), None, None
