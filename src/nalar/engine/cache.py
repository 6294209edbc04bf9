"""What attention remembers of the running sequences: a vector per layer, row and token.

L layers · S slots (rows of the batch) · T positions · C what a token leaves in a layer
"""

import torch
from torch import Tensor

STEP_TOKENS = 32
"""The view handed to the model grows by this many positions, so that short sequences are cheap to
attend to.
"""


class TokenCache:
    """Memory of fixed rows and growing length.

    Rows are only ever read up to the position last written.
    """

    def __init__(self, num_layers: int, num_slots: int, entry_dim: int, max_len: int) -> None:
        self._shape = (num_layers, num_slots, entry_dim)
        self._max_len = max_len
        self._memory_LSTC: Tensor | None = None

    def view(self, num_rows: int, length: int) -> Tensor:
        """The first rows, as memory that may be written to, `length` positions or a few more."""
        assert self._memory_LSTC is not None, "no prompt was stored yet"
        memory_LSTC = self._reserve(min(length, self._max_len), self._memory_LSTC)
        return memory_LSTC[:, :num_rows, : self._rounded(length)]

    def store_prompt(self, first_row: int, num_rows: int, entries_LTC: Tensor) -> None:
        """Copy one prompt into neighbouring rows, one for each sample of its request."""
        length = entries_LTC.shape[1]
        memory_LSTC = self._reserve(length, entries_LTC)
        rows = slice(first_row, first_row + num_rows)
        memory_LSTC[:, rows, :length] = entries_LTC[:, None]

    def move(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Copy the first `length` positions of rows onto other rows."""
        assert self._memory_LSTC is not None, "no prompt was stored yet"
        used_LSTC = self._memory_LSTC[:, :, :length]
        used_LSTC[:, targets] = used_LSTC[:, sources]

    def _rounded(self, length: int) -> int:
        return min(self._max_len, -(-length // STEP_TOKENS) * STEP_TOKENS)

    def _reserve(self, length: int, like: Tensor) -> Tensor:
        """Make room for `length` positions.

        Doubling keeps the cost of copying constant per token.
        """
        old_LSTC = self._memory_LSTC
        old_length = 0 if old_LSTC is None else old_LSTC.shape[2]
        if old_LSTC is not None and length <= old_length:
            return old_LSTC
        num_layers, num_slots, entry_dim = self._shape
        capacity = self._rounded(max(length + STEP_TOKENS, 2 * old_length))
        # Zeros, not empty memory: a masked weight of 0 times a stray NaN would be NaN.
        memory_LSTC = torch.zeros(
            (num_layers, num_slots, capacity, entry_dim), dtype=like.dtype, device=like.device
        )
        if old_LSTC is not None:
            memory_LSTC[:, :, :old_length] = old_LSTC
        self._memory_LSTC = memory_LSTC
        return memory_LSTC
