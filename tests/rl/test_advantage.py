import pytest
import torch
from torch.testing import assert_close

from nalar.rl.advantage import group_advantages


def test_divided_by_the_groups_own_deviation():
    """Mean 1/4, deviation sqrt(3)/4: 0.75 / 0.4330 is sqrt(3), -0.25 / 0.4330 is -1/sqrt(3)."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    got = group_advantages(rewards, divide_by_std=True, eps=0.0)
    root = 3**0.5
    expected = torch.tensor([[root, -1 / root, -1 / root, -1 / root], [-1.0, 1.0, 1.0, -1.0]])
    assert_close(got, expected)


def test_eps_is_added_to_the_deviation():
    """(1.1, 0.1, 0.1, 1.1): mean 0.6, deviation 0.5, so 0.5 / (0.5 + 0.05)."""
    rewards = torch.tensor([[1.1, 0.1, 0.1, 1.1]])
    got = group_advantages(rewards, divide_by_std=True, eps=0.05)
    assert_close(got, torch.tensor([[10 / 11, -10 / 11, -10 / 11, 10 / 11]]))


def test_only_centred_where_the_deviation_is_left_out():
    rewards = torch.tensor([[1.1, 0.1, 0.0, 0.0]])
    got = group_advantages(rewards, divide_by_std=False, eps=0.05)
    assert_close(got, torch.tensor([[0.8, -0.2, -0.3, -0.3]]))


@pytest.mark.parametrize("divide_by_std", [True, False])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.1])
def test_equal_rewards_teach_nothing(divide_by_std, reward):
    got = group_advantages(torch.full((2, 5), reward), divide_by_std=divide_by_std, eps=0.05)
    assert_close(got, torch.zeros(2, 5), atol=1e-6, rtol=0)


def test_groups_do_not_know_each_other():
    both = torch.tensor([[1.0, 0.0, 0.0], [0.1, 1.1, 0.1]])
    alone = [group_advantages(row[None], divide_by_std=True, eps=0.05) for row in both]
    assert_close(group_advantages(both, divide_by_std=True, eps=0.05), torch.cat(alone))
