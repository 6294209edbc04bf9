import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nalar.config import ConfigError
from nalar.tasks.chain_sum import ChainSum, terms_of
from nalar.tasks.config import ChainSumConfig
from nalar.tasks.problem import Problem, split_of

NINE = Problem("chain_sum", "chain_sum:3+4-5+6-1+2", "3+4-5+6-1+2", {"total": 9})


def test_chains_have_the_stated_length_and_split() -> None:
    task, rng = ChainSum(), random.Random(0)
    lengths = set()
    for _ in range(300):
        problem = task.draw(rng, "valid")
        lengths.add(len(terms_of(problem.prompt)))
        assert split_of(problem.key) == "valid" and terms_of(problem.prompt)[0] > 0
        assert "0" not in problem.prompt
        assert min(itertools.accumulate(terms_of(problem.prompt))) >= 0
    assert lengths == {5, 6, 7}


def test_totals_go_below_zero_where_that_is_allowed() -> None:
    task, rng = ChainSum(ChainSumConfig(min_total=-50)), random.Random(0)
    assert any(task.draw(rng, "train").data["total"] < 0 for _ in range(200))


def test_only_one_integer_is_an_answer() -> None:
    task = ChainSum()
    assert task.score(NINE, " 9 ").correct and task.score(NINE, "09").canonical == "9"
    assert task.score(NINE, "−9").canonical == "-9" and not task.score(NINE, "-9").correct
    for text in ("", "nine", "9.0", "4+5", "9 9", "+9", "9" * 400, "٩"):
        assert not task.score(NINE, text).well_formed


@given(st.text())
def test_any_answer_is_scored(text: str) -> None:
    assert ChainSum().score(NINE, text).error is None


def test_bounds_that_disagree_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_terms"):
        ChainSumConfig(min_terms=9)
