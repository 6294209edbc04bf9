"""The probe's verdict on searches written by hand."""

import pytest

from nalar.config import ConfigError
from nalar.data.dialogue import Parsed
from nalar.engine.sequence import Completion
from nalar.evals.config import EvalConfig, ProbeConfig
from nalar.evals.probe import judge
from nalar.evals.protocol import Sample
from nalar.tasks.problem import Problem, Score

PROBLEM = Problem(
    task="countdown",
    key="countdown:3 8 9=24",
    prompt="make 24 from 3 8 9",
    data={"numbers": [3, 8, 9], "target": 24},
)
HIT, MISS = "9/3=3,3*8=24", "8-3=5,5*9=45"
STRICT = ProbeConfig(min_hits=2, min_recall=0.75, max_false_frac=0.05)


def search(thought, *, correct=False):
    completion = Completion(token_ids=(1,), logprobs=(0.0,), finish_reason="stop", policy_version=0)
    parsed = Parsed(thought=thought, answer="x", closed=True, well_formed=True)
    score = Score(correct=correct, well_formed=True, canonical="x")
    return Sample(PROBLEM, 9, completion, parsed, score)


def test_hits_misses_and_what_was_said_of_them_are_counted():
    result = judge(
        [
            search(f"{MISS}✗\n{HIT}✓", correct=True),
            search(f"{HIT}✗\n{MISS}✓"),  # both misjudged
            search(f"{HIT}✓"),  # recognised, then answered wrong
            search(f"{HIT}✗\n{HIT}✓", correct=True),
            search("", correct=True),  # a lucky guess
        ],
        STRICT,
    )
    assert (result.hits, result.misses) == (5, 2)
    assert result.recall == 3 / 5
    assert result.false_frac == 1 / 2
    assert result.after_hit_correct_frac == pytest.approx(2 / 3)
    assert result.pass_at_1 == 3 / 5
    assert not result.passed


def test_a_base_that_marks_its_hits_and_only_them_passes():
    result = judge([search(f"{MISS}✗\n{HIT}✓")] * 4, STRICT)
    assert result.passed
    assert (result.recall, result.false_frac) == (1.0, 0.0)
    assert "recognises" in result.reason


def test_too_few_hits_say_nothing():
    result = judge([search(f"{HIT}✓"), search(f"{MISS}✗")], STRICT)
    assert not result.passed
    assert "only 1 tries hit" in result.reason


def test_a_base_that_overlooks_its_hits_fails():
    result = judge([search(f"{HIT}✗\n{HIT}✓\n{MISS}✗")] * 2, STRICT)
    assert not result.passed
    assert "marks 50% of its hits" in result.reason


def test_a_base_that_calls_everything_a_hit_fails():
    result = judge([search(f"{HIT}✓\n{MISS}✓")] * 2, STRICT)
    assert not result.passed
    assert "100.0% of its misses" in result.reason


def test_a_marked_miss_is_no_reason_to_expect_the_answer():
    """Only a hit that was truly one counts towards what follows a hit."""
    result = judge([search(f"{MISS}✓", correct=True)] * 2, STRICT)
    assert result.after_hit_correct_frac == 0.0


def test_a_base_that_never_searches_fails_without_a_division_by_zero():
    result = judge([search("")], STRICT)
    assert (result.hits, result.misses, result.recall, result.false_frac) == (0, 0, 0.0, 0.0)
    assert not result.passed


@pytest.mark.parametrize("field", ["problems", "samples", "max_tokens"])
def test_a_probe_of_nothing_is_refused(field):
    with pytest.raises(ConfigError, match=f"probe.{field}"):
        ProbeConfig(**{field: 0})


@pytest.mark.parametrize("cls", [EvalConfig, ProbeConfig])
def test_a_billion_problems_are_refused_and_not_drawn(cls):
    with pytest.raises(ConfigError, match="at most 100000"):
        cls(problems=1_000_000_000)
