import itertools

import numpy as np
import pytest

from nalar.stats import Interval, bootstrap_ci, majority, paired_difference, pass_at_k, winner


@pytest.mark.parametrize(("n", "c", "k"), [(8, 3, 1), (8, 3, 4), (6, 0, 3), (6, 6, 1), (5, 4, 2)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_hit(n, c, k):
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(8, 3, 9), (8, 9, 1), (8, -1, 1), (8, 1, 0)])
def test_pass_at_k_refuses_what_has_no_answer(n, c, k):
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k(n, c, k)


def test_a_vote_wants_one_answer_ahead_of_all_others():
    assert winner(["a", "b", "a", None, None, None]) == "a"
    assert winner(["a", "b"]) is None
    assert winner([None, None]) is None
    assert winner([]) is None


def test_a_tie_is_wrong_even_between_correct_answers():
    correct = {"a": True, "b": True, "c": False}
    assert majority(["a", "a", "c"], correct)
    assert not majority(["c", "c", "a"], correct)
    assert not majority(["a", "b"], correct)
    assert not majority([None], correct)


def test_an_interval_is_the_same_for_the_same_seed_and_holds_its_mean():
    values = np.random.default_rng(0).random(150).tolist()
    one = bootstrap_ci(values, seed=1)
    assert one == bootstrap_ci(values, seed=1)
    assert one != bootstrap_ci(values, seed=2)
    assert one.lo < one.mean < one.hi
    assert one.mean == pytest.approx(np.mean(values))


def test_an_interval_is_as_wide_as_the_normal_one_for_many_values():
    values = np.random.default_rng(0).random(400)
    half_width = 1.96 * values.std() / np.sqrt(values.size)
    interval = bootstrap_ci(values.tolist(), seed=0)
    assert interval.hi - interval.lo == pytest.approx(2 * half_width, rel=0.1)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_ci(rng.random(50).tolist(), seed=s, resamples=400) for s in range(200)]
    assert sum(i.lo <= 0.5 <= i.hi for i in intervals) >= 180


def test_equal_values_have_an_interval_without_width():
    assert bootstrap_ci([1.0] * 9, seed=0) == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize("values", [[], [float("nan")]])
def test_no_values_have_no_interval(values):
    with pytest.raises(ValueError, match="at least one problem"):
        bootstrap_ci(values, seed=0)


def test_pairing_cancels_what_makes_a_problem_hard():
    hard = np.random.default_rng(0).random(100)
    difference = paired_difference(hard.tolist(), (hard + 0.05).tolist(), seed=0)
    assert difference.mean == pytest.approx(0.05)
    assert difference.lo > 0.04
    assert bootstrap_ci(hard.tolist(), seed=0).overlaps(
        bootstrap_ci((hard + 0.05).tolist(), seed=0)
    )
    with pytest.raises(ValueError, match="same problems"):
        paired_difference([1.0], [1.0, 0.0], seed=0)
