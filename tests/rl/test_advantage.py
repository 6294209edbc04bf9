"""Advantages on rewards whose comparison one can do on paper."""

import pytest
import torch
from torch.testing import assert_close

from nalar.rl.advantage import advantages
from nalar.rl.config import AdvantageConfig

NAMES = ("grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline")


def compare(name, rewards, judged=None, eps=1e-12):
    judged_GS = None if judged is None else torch.tensor(judged)
    return advantages(torch.tensor(rewards), AdvantageConfig(name=name, eps=eps), judged_GS)


def test_grpo_divides_by_the_groups_own_deviation():
    """Mean 1/4, deviation sqrt(3)/4: 0.75 / 0.4330 is sqrt(3), -0.25 / 0.4330 is -1/sqrt(3)."""
    root = 3**0.5
    assert_close(
        compare("grpo", [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]),
        torch.tensor([[root, -1 / root, -1 / root, -1 / root], [-1.0, 1.0, 1.0, -1.0]]),
    )


def test_eps_is_added_to_the_deviation():
    """(1.1, 0.1, 0.1, 1.1): mean 0.6, deviation 0.5, so 0.5 / (0.5 + 0.05)."""
    got = compare("grpo", [[1.1, 0.1, 0.1, 1.1]], eps=0.05)
    assert_close(got, torch.tensor([[10 / 11, -10 / 11, -10 / 11, 10 / 11]]))


def test_dr_grpo_centres_and_no_more():
    got = compare("dr_grpo", [[1.1, 0.1, 0.0, 0.0]])
    assert_close(got, torch.tensor([[0.8, -0.2, -0.3, -0.3]]))


def test_rloo_compares_with_the_mean_of_the_others():
    """(1, 0, 0, 0): 1 - 0; then 0 - 1/3 each. That is the centred reward times 4/3."""
    got = compare("rloo", [[1.0, 0.0, 0.0, 0.0], [3.0, 1.0, 1.0, 3.0]])
    third = 1 / 3
    expected = [[1.0, -third, -third, -third], [4 * third, -4 * third, -4 * third, 4 * third]]
    assert_close(got, torch.tensor(expected))


def test_reinforce_pp_compares_with_the_whole_rollout():
    """1, 1, 1, 0, 0, 0, 0, 1: mean 1/2 and deviation 1/2 of all eight, whatever group they are of."""
    got = compare("reinforce_pp", [[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert_close(got, torch.tensor([[1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, -1.0, 1.0]]))


def test_under_reinforce_pp_a_group_of_equals_still_teaches():
    got = compare("reinforce_pp", [[1.0, 1.0], [0.0, 0.0]])
    assert_close(got, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))


def test_reinforce_pp_with_a_baseline_centres_by_group_and_divides_by_all():
    """Centred: (1, -1) and (3, -3); the root of the mean square is sqrt(20/4)."""
    got = compare("reinforce_pp_baseline", [[2.0, 0.0], [7.0, 1.0]])
    root = 5**0.5
    assert_close(got, torch.tensor([[1 / root, -1 / root], [3 / root, -3 / root]]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.1])
def test_equal_rewards_teach_exactly_nothing(name, reward):
    assert torch.equal(compare(name, [[reward] * 5] * 2, eps=0.05), torch.zeros(2, 5))


@pytest.mark.parametrize("name", NAMES)
def test_who_has_no_verdict_is_neither_judged_nor_compared_with(name):
    """The third sample's 9 changes nothing; the second group's only verdict has nothing beside it."""
    judged = [[True, True, False, True], [True, True, True, True]]
    with_it = compare(name, [[1.0, 0.0, 9.0, 0.0], [0.0, 1.0, 1.0, 0.0]], judged)
    without = compare(name, [[1.0, 0.0, -4.0, 0.0], [0.0, 1.0, 1.0, 0.0]], judged)
    assert torch.equal(with_it, without)
    assert with_it[0, 2] == 0
    assert (with_it[0, [0, 1, 3]] != 0).all()
    if name != "reinforce_pp":
        alone = compare(name, [[1.0, 5.0]], [[True, False]])
        assert torch.equal(alone, torch.zeros(1, 2))


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_groups_do_not_know_each_other(name):
    both = [[1.0, 0.0, 0.0], [0.1, 1.1, 0.1]]
    assert torch.equal(compare(name, both), torch.cat([compare(name, [row]) for row in both]))
