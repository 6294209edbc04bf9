"""Blocks as torch.compile makes them: one program for each kind of block, whatever documents a batch has."""

# N tokens of a flat batch · P rope width

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nalar.kernels.attention import Observe
from nalar.kernels.documents import Documents
from nalar.model.block import Passed

Call = Callable[..., Passed]


class CompiledBlocks:
    """Holds programs, not parameters: a model's keys stay as they are, and so does uncompiled code."""

    def __init__(self, backend: str = "inductor") -> None:
        """backend: torch's name of a compiler; `aot_eager` only records what blocks do and plays it back."""
        self._backend = backend
        self._programs: dict[tuple[int, str], Call] = {}

    def __call__(
        self,
        call: Any,
        states: tuple[Tensor, ...],
        turn_NP: Tensor,
        documents: Documents,
        observe: Observe,
        balance: bool,
    ) -> Passed:
        """call: a block's own method for a flat batch. Its first call of a kind compiles for tens of seconds.

        Batches of one length share a program; with a second length comes one for all lengths.
        """
        key = (id(call.__self__), call.__name__)
        if key not in self._programs:
            self._programs[key] = torch.compile(call, backend=self._backend)
        if documents.slots_S is not None:  # their number is another in every batch
            torch._dynamo.maybe_mark_dynamic(documents.slots_S, 0)
        # Compilers know no complex numbers.
        turn = torch.cat([turn_NP.real, turn_NP.imag], -1)
        return Passed(*self._programs[key](*states, turn, documents, observe, balance))
