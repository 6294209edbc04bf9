"""What counts as a loop at the end of a response."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nalar.rl.looping import ends_in_a_loop, has_a_loop


@pytest.mark.parametrize(
    "ids",
    [
        [1, 2, 3] + [7] * 16,
        [9] * 5 + [1, 2] * 8,
        list(range(100)) + [3, 1, 4, 1, 5] * 4,
        [8] + list(range(32)) * 4,
        [5, 6, 7, 8] * 4,
    ],
)
def test_loops(ids):
    assert ends_in_a_loop(ids)


@pytest.mark.parametrize(
    "ids",
    [
        [],
        [7] * 15,
        [1, 2] * 7,
        [3, 1, 4, 1, 5] * 3,
        [3, 1, 4, 1, 5] * 4 + [9],
        list(range(33)) * 4,
        list(range(200)),
    ],
)
def test_no_loops(ids):
    assert not ends_in_a_loop(ids)


@given(st.lists(st.integers(0, 2), max_size=80), st.integers(1, 4))
def test_a_loop_anywhere_is_one_that_some_cut_would_end_in(ids, times):
    ids = ids + ids[-3:] * 4 * times + ids[:5]
    assert has_a_loop(ids) == any(ends_in_a_loop(ids[:end]) for end in range(len(ids) + 1))
