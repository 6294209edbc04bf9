import random
from collections import Counter

import pytest

from nalar.config import ConfigError, UserError
from nalar.tasks.arithmetic import LADDER, Arithmetic
from nalar.tasks.check import check_tasks
from nalar.tasks.countdown import Countdown
from nalar.tasks.levels import Leveled
from nalar.tasks.registry import open_task

WORD = "countdown,num_numbers=3..5,max_number=12"


def test_a_range_is_levels_of_one_task():
    task = open_task(WORD, at="--task")
    assert list(task.levels) == ["num_numbers=3", "num_numbers=4", "num_numbers=5"]
    assert [level.config.num_numbers for level in task.levels.values()] == [3, 4, 5]
    assert {level.config.max_number for level in task.levels.values()} == {12}
    assert (task.id, task.searches, task.is_checkable) == ("countdown", True, True)


def test_several_ranges_are_gone_through_side_by_side():
    task = open_task("arithmetic,min_digits=1..3,max_digits=2..4,operators=+-", at="--task")
    assert list(task.levels) == [f"min_digits={n},max_digits={n + 1}" for n in (1, 2, 3)]
    assert [level.config.max_digits for level in task.levels.values()] == [2, 3, 4]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("countdown,num_numbers=3..7", "num_numbers=7"),
        ("countdown,num_numbers=5..3", "2 to 50 levels"),
        ("countdown,num_numbers=3..3", "2 to 50 levels"),
        ("countdown,max_number=3..99", "2 to 50 levels"),
        ("countdown,num_numbers=3..", "num_numbers=3.."),
        ("countdown,num_numbers=3..5,max_number=9..10", "as many levels of each"),
        ("countdown,num_number=3..5", "did you mean 'num_numbers'"),
        ("arithmetic,min_digits=1..3", "max_digits=2"),
    ],
)
def test_levels_that_cannot_be_are_refused(word, told):
    with pytest.raises(UserError, match=told):
        open_task(word, at="--task")


def test_levels_of_different_tasks_are_refused():
    for levels in ({}, {"a": Countdown()}, {"a": Countdown(), "b": Arithmetic()}):
        with pytest.raises(ConfigError, match="two levels of one task"):
            Leveled(levels)


def test_every_level_is_drawn_from_and_named():
    task, rng = open_task(WORD, at="--task"), random.Random(0)
    drawn = [task.draw(rng, "train") for _ in range(60)]
    assert all(count > 9 for count in Counter(p.level for p in drawn).values())
    for problem in drawn:
        assert len(problem.data["numbers"]) == int(problem.level[-1])
        assert task.score(problem, task.gold(problem)).correct
        assert not task.score(problem, "1").correct
    listed = task.problems("valid", 30, seed=1)
    assert Counter(p.level for p in listed) == dict.fromkeys(task.levels, 10)
    assert listed == open_task(WORD, at="--task").problems("valid", 30, seed=1)
    assert len({p.key for p in listed}) == 30


def test_what_one_level_holds_out_no_other_trains_on():
    for task in (
        open_task(WORD, at="--task"),
        Leveled({f"rung {i}": Arithmetic(rung) for i, rung in enumerate(LADDER)}),
        open_task("strings,max_letters=4..7", at="--task"),
    ):
        check_tasks([task])
        train = {p.key for p in task.problems("train", 300, seed=0)}
        assert not train & {p.key for p in task.problems("test", 300, seed=0)}


def test_a_problem_of_no_level_is_refused_and_not_scored_by_another():
    task = open_task(WORD, at="--task")
    problem = Countdown().draw(random.Random(0), "train")
    with pytest.raises(ValueError, match="not None"):
        task.score(problem, "1+1")


def test_baselines_of_all_levels():
    task = open_task(WORD, at="--task")
    constants = list(task.constants())
    assert len(constants) == len(set(constants)) > 10
    rng = random.Random(0)
    problem = task.draw(rng, "test")
    assert task.score(problem, task.guess(rng, problem)).well_formed
