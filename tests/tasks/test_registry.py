import hashlib
import random

import pytest

from nalar.config import UserError
from nalar.tasks.countdown import Countdown
from nalar.tasks.problem import Problem, distinct
from nalar.tasks.registry import FAMILIES, SEARCHING, open_task


def test_a_word_is_a_task_with_the_settings_it_names():
    assert open_task("countdown", at="--task").config == Countdown().config
    task = open_task("countdown,num_numbers=4,max_number=12,operators=+-", at="--task")
    assert (task.config.num_numbers, task.config.max_number) == (4, 12)
    assert task.config.operators == "+-"


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("countdwon", "did you mean 'countdown'"),
        ("countdown,num_number=4", "did you mean 'num_numbers'"),
        ("countdown,num_numbers=9", "num_numbers=9"),
        ("countdown,num_numbers=four", "num_numbers=four"),
        ("countdown,operators=", "name=value"),
        ("countdown,4", "name=value"),
        ("countdown,operators=^", r"\+ - \* /"),
        ("", "one of"),
    ],
)
def test_a_word_that_cannot_be_is_refused_and_says_why(word, told):
    with pytest.raises(UserError, match=told):
        open_task(word, at="--task")


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_and_marks_are_those_of_the_tasks(name):
    family = FAMILIES[name]
    try:
        task = family.make(family.config())
    except UserError as why:
        if "sandbox" not in str(why):
            raise
        pytest.skip(str(why))
    assert task.id == name
    assert task.searches == (name in SEARCHING)


def test_a_list_of_distinct_problems_ends_whatever_is_asked_for():
    drawn = 0

    def draw() -> Problem:
        nonlocal drawn
        drawn += 1
        return Problem("t", str(drawn % 7), "p")

    assert len(distinct(draw, 1_000_000_000)) == 7
    assert drawn < 20_000
    assert [p.key for p in distinct(draw, 3)] != []
    assert distinct(draw, 0) == []


# Written once, from the tasks that the demo's published results were made with.
DEMO = {"countdown": "1698c98f574eeef8", "chain_sum": "98132d61cc0f8489"}


@pytest.mark.parametrize("name", DEMO)
def test_the_demos_problems_and_scores_stay_what_they_were(name):
    task, rng, digest = open_task(name, at="test"), random.Random(11), hashlib.sha256()
    for split in ("train", "valid", "test"):
        drawn = [task.draw(rng, split) for _ in range(50)]
        for problem in [*task.problems(split, 100, seed=7), *drawn]:
            scores = [task.score(problem, answer) for answer in (task.gold(problem), "7", "")]
            told = [(s.correct, s.well_formed, s.canonical, s.error) for s in scores]
            fields = ("task", "key", "prompt", "data")
            what = ", ".join(f"{name}={getattr(problem, name)!r}" for name in fields)
            digest.update(f"(Problem({what}), {told!r})".encode())
    assert digest.hexdigest()[:16] == DEMO[name]
