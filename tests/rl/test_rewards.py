"""Rewards on numbers that one can do on paper."""

import pytest

from nalar.config import ConfigError
from nalar.rl.config import RewardConfig, RewardWeights, RLConfig
from nalar.rl.rewards import Facts, group_rewards, length_parts, totals, weighted_parts
from nalar.tasks.problem import Score

RIGHT, WRONG = Score(True, True), Score(False, True)
ENGLISH = "So we have the sum of both, and that is not what they want, because it is too large."


def facts(score=RIGHT, *, is_whole=True, thought="", tokens=10, cap=100, task="a"):
    return Facts(task, score, is_whole, thought, tokens, cap)


def reward(fact, config):
    return totals(group_rewards([fact], config))[0]


@pytest.mark.parametrize(
    ("correct", "parses", "turn_closed", "earned"),
    [
        (True, True, True, 0.1 + 1.0),
        (False, True, True, 0.1),  # an expression, but another value
        (False, False, True, 0.0),  # closed, but no expression
        (True, True, False, 0.0),  # cut, or a stray special token: nothing, not even when right
        (False, True, False, 0.0),
        (False, False, False, 0.0),
        (True, False, True, 1.0),
    ],
)
def test_the_usual_reward_of_every_case(correct, parses, turn_closed, earned):
    score = Score(correct=correct, well_formed=parses)
    assert reward(facts(score, is_whole=turn_closed), RewardConfig()) == earned


def test_parts_of_weight_0_are_left_out():
    assert weighted_parts(facts(), RewardConfig()) == {"well_formed": 0.1, "correct": 1.0}
    only = RewardConfig(correct=2.0, well_formed=0.0)
    assert weighted_parts(facts(), only) == {"correct": 2.0}


def test_the_language_part_is_the_share_of_the_language_asked_for():
    config = RewardConfig(language=0.5, target_language="id")
    assert weighted_parts(facts(thought=ENGLISH), config)["language"] == 0.0
    english = RewardConfig(language=0.5, target_language="en")
    assert weighted_parts(facts(thought=ENGLISH), english)["language"] == 0.5
    assert weighted_parts(facts(thought=ENGLISH, is_whole=False), english)["language"] == 0.0
    assert weighted_parts(facts(thought="3+4=7✓"), config)["language"] == 0.5
    assert weighted_parts(facts(WRONG, thought=ENGLISH), english)["correct"] == 0.0


@pytest.mark.parametrize(
    ("tokens", "penalty"), [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (120, -1.0)]
)
def test_the_overlong_part_falls_from_its_beginning_to_the_cap(tokens, penalty):
    config = RewardConfig(overlong=1.0)
    earned = weighted_parts(facts(tokens=tokens, is_whole=False), config)
    assert earned["overlong"] == pytest.approx(penalty)
    without = Facts("a", RIGHT, True, "", tokens, None)
    assert weighted_parts(without, config)["overlong"] == 0.0


def test_the_length_part_compares_within_the_group():
    assert length_parts([10, 20, 30], [True, True, True]) == [0.5, 0.0, -0.5]
    assert length_parts([10, 20, 30], [False, True, False]) == [0.0, 0.0, -0.5]
    assert length_parts([7, 7], [True, False]) == [0.0, 0.0]
    config = RewardConfig(length=0.2, well_formed=0.0)
    group = [facts(tokens=10), facts(tokens=30), facts(WRONG, tokens=10)]
    assert totals(group_rewards(group, config)) == pytest.approx([1.1, 0.9, 0.0])


def test_weights_can_be_set_for_one_task():
    config = RewardConfig(by_task={"b": RewardWeights(correct=3.0, well_formed=0.0)})
    assert reward(facts(task="a"), config) == 1.1
    assert reward(facts(task="b"), config) == 3.0


def test_weights_of_a_task_that_is_not_trained_on_are_refused():
    with pytest.raises(ConfigError, match=r"(?s)rl.reward.by_task.*did you mean 'countdown'"):
        RLConfig(steps=1, reward=RewardConfig(by_task={"countdwon": RewardWeights(correct=2.0)}))
    RLConfig(steps=1, reward=RewardConfig(by_task={"countdown": RewardWeights(correct=2.0)}))


@pytest.mark.parametrize("earned", [0.1, 0.7, 1.1, 1 / 3])
@pytest.mark.parametrize("others", [3, 6, 7, 15])
def test_a_failed_verifier_among_equals_is_equal_to_the_last_bit(earned, others):
    assert len(set(totals([{"a": earned}] * others + [None]))) == 1


def test_a_failed_verifier_is_neutral_and_has_no_say_in_lengths():
    failed = Score(False, True, error="no answer within 5 s", timed_out=True)
    config = RewardConfig(length=1.0)
    group = [facts(tokens=10), facts(failed, tokens=1000), facts(WRONG, tokens=20)]
    parts = group_rewards(group, config)
    assert parts[1] is None
    assert parts[0]["length"] == 0.5 and parts[2]["length"] == -0.5
    assert totals(parts) == pytest.approx([1.6, (1.6 - 0.4) / 2, -0.4])
    assert totals(group_rewards([facts(failed)] * 3, config)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "settings",
    [
        {"language": 0.5},
        {"target_language": "id"},
        {"by_task": {"a": RewardWeights(language=1.0)}},
    ],
)
def test_a_language_and_its_weight_go_together(settings):
    with pytest.raises(ConfigError, match="target_language"):
        RewardConfig(**settings)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_weights_are_finite_and_not_negative(weight):
    for name in RewardWeights.model_fields:
        with pytest.raises(ValueError, match=name):
            RewardWeights(**{name: weight})
