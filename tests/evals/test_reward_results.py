"""A test of a reward model by hand: accuracy, what order and length do, what its certainty is worth."""

import json
import math

import pytest

from nalar.evals.reward_results import (
    Judged,
    RewardResults,
    Side,
    correlation_within,
    reward_results,
)
from nalar.evals.reward_table import reward_table
from nalar.evals.table import plain


def pair(better, worse, *, key="k", tokens=(5, 5), quality=(None, None), **more):
    sides = (
        Side(score, n, q) for score, n, q in zip((better, worse), tokens, quality, strict=True)
    )
    return Judged(key, *sides, **({"margin_swapped": better - worse} | more))


def results(judged, kind="preference"):
    return reward_results(judged, kind=kind, data="d.jsonl", trained=3, seed=0)


def test_accuracy_is_over_conversations_and_a_tie_is_not_right():
    found = results(
        [pair(2, 1, key="a"), pair(2, 1, key="a"), pair(1, 2, key="b"), pair(1, 1, key="c")]
    )
    assert found.n == 4 and found.accuracy.mean == pytest.approx(1 / 3)
    lo, hi = found.accuracy.ci95
    assert 0 <= lo <= 1 / 3 <= hi <= 1


def test_a_scorer_without_position_bias_shows_none():
    judged = [pair(1, 0, better_first=bool(i % 2), key=str(i), margin_alone=1.0) for i in range(10)]
    position = results(judged).position
    assert position.verdicts_changed_frac == position.largest_by_order == 0
    assert position.largest_by_company == 0 and position.first_preferred_frac == 0.5


def test_a_judge_that_likes_the_first_side_is_found_out():
    """Of two sides the first one gets 1 more."""
    judged = []
    for i in range(10):
        first = bool(i % 2)
        margin = 0.5 + (1 if first else -1)
        judged.append(
            Judged(
                str(i),
                Side(margin, 5),
                Side(0, 5),
                better_first=first,
                margin_swapped=0.5 + (-1 if first else 1),
            )
        )
    position = results(judged).position
    assert position.verdicts_changed_frac == 1 and position.largest_by_order == 2
    assert position.first_preferred_frac == 1


def test_company_shows_in_its_own_figure():
    position = results([pair(1, 0, margin_alone=0.75), pair(1, 0)]).position
    assert position.largest_by_company == 0.25 and position.largest_by_order == 0


def test_a_scorer_of_length_is_found_out():
    judged = [
        pair(long, short, tokens=(long, short), key=f"{long}{short}", quality=(1.0, 0.0))
        for long, short in ((9, 3), (8, 5), (2, 6), (4, 7))
    ]
    length = results(judged).length
    assert length.correlation == pytest.approx(1)
    assert length.worse_longer.mean == 0 and length.worse_shorter.mean == 1
    assert (length.better_tokens, length.worse_tokens) == (23 / 4, 21 / 4)


def test_length_is_compared_among_answers_of_equal_quality_alone():
    """Good answers are longer and score higher; among equals length does nothing."""
    good = [Side(5, n, 1.0) for n in (10, 12, 14)]
    bad = [Side(-5, n, 0.0) for n in (2, 3, 4)]
    assert correlation_within([good, bad]) is None  # no spread of scores within
    good = [Side(5 + s, n, 1.0) for s, n in ((0, 10), (1, 12), (0, 14))]
    assert correlation_within([good, bad]) == pytest.approx(0)
    assert correlation_within([[Side(1, 2)], [Side(2, 3)]]) is None


def test_certainty_is_held_against_the_truth():
    sure, unsure = math.log(9), math.log(1.5)  # 0.9 and 0.6
    judged = [pair(sure, 0, key=str(i)) for i in range(9)] + [pair(-sure, 0, key="x")]
    judged += [pair(unsure, 0, key=f"u{i}") for i in range(2)] + [pair(-unsure, 0, key="v")]
    found = results(judged)
    assert [(b.n, round(b.certainty, 6)) for b in found.calibration] == [(3, 0.6), (10, 0.9)]
    assert [b.right_frac for b in found.calibration] == pytest.approx([2 / 3, 0.9])
    assert found.calibration_error == pytest.approx(3 / 13 * (2 / 3 - 0.6))
    expected = -(9 * math.log(0.9) + math.log(0.1) + 2 * math.log(0.6) + math.log(0.4)) / 13
    assert found.log_loss == pytest.approx(expected)


def test_scores_without_bounds_break_nothing():
    found = results([pair(1e6, -1e6), pair(-1e6, 1e6)])
    assert found.log_loss == pytest.approx(1e6)
    assert json.loads(found.model_dump_json())["accuracy"]["mean"] == 0.5


def test_of_labels_each_kind_has_its_share():
    judged = [
        Judged("a", Side(2, 5), None),
        Judged("b", Side(-1, 9), None),
        Judged("c", None, Side(-3, 4), flaw="method"),
    ]
    found = results(judged, "safety")
    assert found.accuracy.mean == pytest.approx(2 / 3)
    assert found.safe_passed.mean == 0.5 and found.unsafe_caught.mean == 1
    assert found.position.first_preferred_frac is None
    assert found.length.worse_longer is None and found.by_flaw["method"].mean == 1


def test_the_table_shows_every_figure_and_the_document_reads_back():
    judged = [pair(1, 0, tokens=(4, 7), quality=(1.0, 0.2), flaw="no name", margin_alone=1.0)]
    judged += [pair(0, 1, tokens=(7, 4), key="b", quality=(1.0, 0.2), flaw="rude", margin_alone=-1)]
    found = results(judged)
    text = plain(reward_table(found))
    for shown in (
        "2 pairs",
        "50.0%",
        "order",
        "company",
        "no name",
        "rude",
        "calibration",
        "longer",
    ):
        assert shown in text, text
    assert RewardResults.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(ValueError, match="judgements"):
        results([])
