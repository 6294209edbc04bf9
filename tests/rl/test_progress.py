"""Age of tokens, and what was dropped or waits, in the report of a step."""

from dataclasses import replace

import pytest

from nalar.rl.progress import progress
from nalar.rl.rollout import Collected
from nalar.tasks.chain_sum import ChainSum


def aged(rollout, versions):
    return replace(rollout, response=replace(rollout.response, versions=tuple(versions)))


def test_staleness_is_of_the_tokens_that_were_drawn_and_trained_on(make_rollout):
    given = make_rollout([1], [2, 3, 4, 5], reward=1.0, drawn=[True, False, True, True])
    group = [aged(given, [3, 3, 4, 5]), aged(make_rollout([1], [6]), [5])]
    dropped = [aged(make_rollout([1], [7, 8]), [0, 0]), aged(make_rollout([1], [7]), [0])]
    told = progress(6, [ChainSum()], Collected(5, [group], [dropped], 2, 3, 9), [])
    # of four tokens one is two steps old, one is one step old
    assert told.stale_frac == {0: 0.5, 1: 0.25, 2: 0.25}
    assert told.staleness == pytest.approx(0.75)
    assert told.max_staleness == 2
    counts = (told.begun_groups, told.kept_groups, told.dropped_groups, told.unfinished_groups)
    assert counts == (2, 1, 1, 3)
    assert told.sampled_tokens == 9
    assert told.reward == pytest.approx(0.25)  # of all four responses
    assert told.silent_groups == 1


def test_nothing_is_stale_where_all_is_of_this_step(make_rollout):
    group = [aged(make_rollout([1], [2, 3], reward=r), [4, 4]) for r in (0.0, 1.0)]
    told = progress(5, [ChainSum()], Collected(4, [group]), [])
    assert (told.stale_frac, told.staleness, told.max_staleness) == ({}, 0, 0)
