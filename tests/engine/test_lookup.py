import random

import pytest

from nalar.engine.lookup import Lookup


def by_search(token_ids, count, least, most):
    """The same by looking at every place, from the last."""
    for length in range(most, least - 1, -1):
        suffix = token_ids[-length:]
        for place in range(len(token_ids) - 1, length - 1, -1):
            if len(suffix) == length and token_ids[place - length : place] == suffix:
                period = token_ids[place:]
                return [period[i % len(period)] for i in range(count)]
    return []


@pytest.mark.parametrize(("least", "most"), [(1, 1), (2, 2), (1, 3), (2, 4)])
def test_a_guess_is_what_followed_the_longest_suffix_last(least, most):
    rng = random.Random(most)
    num_found = 0
    for _ in range(20):
        lookup, token_ids = Lookup(least, most), []
        while len(token_ids) < 40:
            token_ids += [rng.randrange(3) for _ in range(rng.randint(1, 4))]
            guess = lookup.guess(token_ids, 5)
            assert guess == by_search(token_ids, 5, least, most)
            num_found += bool(guess)
    assert num_found > 50


def test_a_period_goes_on_beyond_what_is_known():
    assert Lookup(2, 4).guess([7, 1, 2, 3, 1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]


def test_what_never_stood_before_gives_no_guess():
    assert Lookup(1, 3).guess([1, 2, 3], 4) == []
