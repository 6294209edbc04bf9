"""Whether a response ends in a loop: the same few tokens over and over. No torch."""

from collections.abc import Sequence

LONGEST_PERIOD = 32
"""Tokens of what is repeated, at most."""
TIMES = 4
"""How often it must stand at the end, one after another."""


def has_a_loop(token_ids: Sequence[int]) -> bool:
    """Whether it would have ended in a loop, had it been cut somewhere."""
    for period in range(1, LONGEST_PERIOD + 1):
        wanted = max(period * TIMES, 16) - period
        same = 0
        for one, other in zip(token_ids, token_ids[period:], strict=False):
            same = same + 1 if one == other else 0
            if same == wanted:
                return True
    return False


def ends_in_a_loop(token_ids: Sequence[int]) -> bool:
    """Whether the last tokens are one stretch of up to 32 tokens, four times; a single token sixteen times."""
    for period in range(1, LONGEST_PERIOD + 1):
        length = max(period * TIMES, 16)
        if length > len(token_ids):
            continue
        tail = token_ids[-length:]
        if all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return True
    return False
