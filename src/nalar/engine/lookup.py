"""Guesses at the next tokens, from what followed the newest ones before (prompt lookup). Imports no torch."""

from collections.abc import Sequence


class Lookup:
    """Where each short run of tokens in one growing sequence stood last."""

    def __init__(self, least: int, most: int) -> None:
        self._lengths = range(most, least - 1, -1)
        self._after: dict[tuple[int, ...], int] = {}
        """By run: the place behind its last occurrence that something follows."""
        self._num_known = 0
        """Places that runs were looked for behind."""

    def guess(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that followed the longest suffix which stood there before; none where no suffix did.

        token_ids: those of the call before, and what has come since. What follows may run into the
        guesses themselves, so that a period goes on.
        """
        self._learn(token_ids)
        for length in self._lengths:
            place = self._after.get(tuple(token_ids[-length:]))
            if place is not None:
                known = list(token_ids[place : place + count])
                while len(known) < count:
                    known += known[: count - len(known)]
                return known[:count]
        return []

    def _learn(self, token_ids: Sequence[int]) -> None:
        for place in range(max(self._num_known, 1), len(token_ids)):
            for length in self._lengths:
                if length <= place:
                    self._after[tuple(token_ids[place - length : place])] = place
        self._num_known = max(self._num_known, len(token_ids))
