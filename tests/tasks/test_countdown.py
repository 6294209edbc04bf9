import itertools
import random
import time
from collections import Counter

import pytest

from nalar.config import ConfigError
from nalar.sandbox import expression
from nalar.tasks.config import CountdownConfig
from nalar.tasks.countdown import Countdown, split_of_numbers
from nalar.tasks.problem import Problem, Split

SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@pytest.fixture(scope="module")
def task() -> Countdown:
    return Countdown()


def test_every_gold_answer_is_correct_and_a_blank_is_not(task: Countdown) -> None:
    for split in SPLITS:
        problems = task.problems(split, 10_000, seed=0)
        assert len({p.key for p in problems}) == len(problems) > 100
        for problem in problems:
            assert task.score(problem, task.gold(problem)).correct
        assert not task.score(problems[0], "").well_formed


def test_problems_split_by_numbers_alone(task: Countdown) -> None:
    seen = {s: {tuple(p.data["numbers"]) for p in task.problems(s, 10_000, 0)} for s in SPLITS}
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["valid"]
    rng = random.Random(1)
    for split in SPLITS:
        for _ in range(200):
            assert split_of_numbers(task.draw(rng, split).data["numbers"]) == split


def test_draws_are_uniform_over_distinct_problems(task: Countdown) -> None:
    rng, n = random.Random(0), 40_000
    total = len(task.problems("test", 10_000, 0))
    counts = Counter(task.draw(rng, "test").key for _ in range(n))
    assert len(counts) == total
    assert max(counts.values()) < 1.6 * n / total


def test_plain_sums_are_no_targets_and_all_targets_are_reached(task: Countdown) -> None:
    problems = task.problems("train", 10_000, 0)
    assert all(p.data["target"] != sum(p.data["numbers"]) for p in problems)
    first_set = sorted(problems[0].data["numbers"])
    mine = {p.data["target"] for p in problems if sorted(p.data["numbers"]) == first_set}
    want = set()
    for a, b, c in itertools.permutations(problems[0].data["numbers"]):
        for first in (a + b, a - b, a * b):
            if 1 <= first <= 60:
                want |= {v for v in (first + c, first - c, c - first, first * c) if 1 <= v <= 60}
    assert mine == want - {sum(problems[0].data["numbers"])}


def test_the_same_seed_gives_the_same_problems(task: Countdown) -> None:
    assert task.problems("test", 50, 3) == Countdown().problems("test", 50, 3)
    assert task.problems("test", 20, 3) == task.problems("test", 50, 3)[:20]
    assert task.problems("test", 50, 3) != task.problems("test", 50, 4)


def test_score_wants_each_number_once_and_the_target(task: Countdown) -> None:
    problem = Problem("countdown", "k", "make 24 from 3 4 9", {"numbers": [3, 4, 9], "target": 24})
    assert task.score(problem, " (9-3)*4 ").correct
    assert task.score(problem, "4 × (9 − 3)").canonical == "(9-3)*4"
    assert task.score(problem, "9-3+4").well_formed
    for wrong in ("(9-3)*4*1", "24", "8*3", "9-3+4", "(9-3)*4=24", "x", "9" * 500):
        assert not task.score(problem, wrong).correct


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_tries_are_true_and_use_all_numbers(count: int) -> None:
    task, rng = Countdown(CountdownConfig(num_numbers=count, max_number=12)), random.Random(0)
    for _ in range(100):
        numbers = task.draw_numbers(rng, "train")
        found = task.random_try(rng, numbers)
        parsed = expression.parse(found.expression)
        assert parsed.value == found.value and sorted(parsed.numbers) == list(numbers)
        steps = found.steps.split(",")
        assert len(steps) == count - 1
        for step in steps:
            left, right = step.split("=")
            assert expression.parse(left).value == int(right) and 1 <= int(right) <= 60


def test_tries_read_as_documented(task: Countdown) -> None:
    texts = {t.steps: t.expression for t in task.tries([9, 3, 8])}
    assert texts["8-3=5,5*9=45"] == "(8-3)*9"
    assert texts["8-3=5,9-5=4"] == "9-(8-3)"
    assert "3*8=24,24+9=33" not in texts and texts["8*3=24,24+9=33"] == "(8*3)+9"


def test_random_tries_are_uniform_and_fast(task: Countdown) -> None:
    rng, n = random.Random(0), 20_000
    start = time.perf_counter()
    counts = Counter(task.random_try(rng, (3, 8, 9)).steps for _ in range(n))
    assert (time.perf_counter() - start) / n < 50e-6
    assert set(counts) == {t.steps for t in task.tries((3, 8, 9))}
    assert max(counts.values()) < 1.25 * n / len(counts)


@pytest.mark.parametrize("count", [4, 5])
def test_many_numbers_work_without_enumeration(count: int) -> None:
    task = Countdown(CountdownConfig(num_numbers=count, max_number=12, max_intermediate=100))
    for split in SPLITS:
        problems = task.problems(split, 20, seed=0)
        assert len(problems) == 20
        for problem in problems[:5]:
            assert split_of_numbers(problem.data["numbers"]) == split
            assert task.score(problem, task.gold(problem)).correct


def test_constants_are_distinct_expressions(task: Countdown) -> None:
    constants = list(task.constants())
    assert 100 < len(constants) == len(set(constants)) <= 300
    assert all(expression.parse(text) for text in constants)


def test_a_configuration_without_problems_is_refused() -> None:
    with pytest.raises(ConfigError, match="every split"):
        Countdown(CountdownConfig(max_number=2))
    with pytest.raises(ConfigError, match="operators"):
        CountdownConfig(operators="+^")


@pytest.mark.parametrize("settings", [{"max_number": 2}, {"operators": "+"}])
def test_four_numbers_without_a_problem_are_refused_instead_of_drawn_for_ever(settings):
    with pytest.raises(ConfigError, match="problems in every split"):
        Countdown(CountdownConfig(num_numbers=4, **settings)).draw(random.Random(0), "test")


def test_many_numbers_are_drawn_from_not_gone_through():
    start = time.perf_counter()
    task = Countdown(CountdownConfig(max_number=100, max_intermediate=10_000))
    problems = task.problems("test", 50, seed=0)
    assert time.perf_counter() - start < 1
    assert not task.is_enumerated and len(problems) == 50
    for problem in problems:
        assert split_of_numbers(problem.data["numbers"]) == "test"
        assert task.score(problem, task.gold(problem)).correct


def test_tries_of_six_numbers_are_not_listed():
    task = Countdown(CountdownConfig(num_numbers=6, max_number=25, max_intermediate=1000))
    problem = task.problems("test", 1, seed=0)[0]
    assert task.score(problem, task.gold(problem)).correct
    assert task.score(problem, task.guess(random.Random(0), problem)).well_formed
    assert not task.can_list_tries
    with pytest.raises(ConfigError, match="at most 5"):
        task.tries(problem.data["numbers"])


def test_fewer_numbers_come_as_often_as_more() -> None:
    task = Countdown(CountdownConfig(min_numbers=3, num_numbers=4, max_number=12))
    problems = task.problems("test", 300, seed=0)
    counts = [len(p.data["numbers"]) for p in problems]
    assert set(counts) == {3, 4} and 100 < counts.count(3) < 200
    for problem in problems:
        assert task.score(problem, task.gold(problem)).correct
        assert split_of_numbers(problem.data["numbers"]) == "test"
    rng = random.Random(0)
    assert all(
        len(expression.parse(task.guess(rng, p)).numbers) == len(p.data["numbers"])
        for p in problems
    )


def test_more_numbers_at_least_than_at_most_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_numbers"):
        CountdownConfig(min_numbers=5, num_numbers=4)
