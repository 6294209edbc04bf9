"""Problems of reasoning-gym behind our own scorers: with a stand-in for the package, and with it where it is."""

import random
import sys

import pytest

from nalar.config import UserError
from nalar.tasks.check import check_tasks, refuse_overlap
from nalar.tasks.gym import DATASETS, SCORERS, SIZE, GymTask
from nalar.tasks.problem import split_of
from nalar.tasks.registry import open_task


class Sums:
    """A generator as the package has them, with a scorer that must never be called."""

    def __getitem__(self, n):
        rng = random.Random(n)
        if rng.random() < 0.1:
            raise RuntimeError("no puzzle after 1000 attempts")
        a, b = rng.randrange(500), rng.randrange(500)
        return {"question": f"Add {a} and {b}.", "answer": str(a + b), "metadata": {"seed": n}}

    def score_answer(self, answer, entry):
        raise AssertionError("a foreign scorer was called")


class Tables(Sums):
    def __getitem__(self, n):
        rows = [[str(random.Random(n + i).randrange(10)) for _ in range(3)] for i in range(2)]
        turned = "\n".join(" ".join(row[::-1]) for row in rows)
        return {"question": f"Mirror {n}: {rows}", "answer": turned}


@pytest.fixture
def task():
    return GymTask("sums", "number", Sums())


def test_a_generator_behind_our_scorer_is_a_task(task):
    check_tasks([task])
    found = {split: task.problems(split, 60, seed=0) for split in ("train", "valid", "test")}
    keys = {split: {p.key for p in problems} for split, problems in found.items()}
    assert sum(map(len, keys.values())) == 180 == len(set.union(*keys.values()))
    for split, problems in found.items():
        assert problems == GymTask("sums", "number", Sums()).problems(split, 60, seed=0)
        for problem in problems:
            assert split_of(problem.key) == split
            assert task.score(problem, task.gold(problem)).correct
            assert not task.score(problem, task.gold(problem) + "0").correct


def test_the_same_question_from_two_seeds_is_one_problem(task):
    once = GymTask(
        "sums", "number", {n: {"question": "Add 1  and 2.", "answer": "3"} for n in range(SIZE)}
    )
    one, other = (once.make(random.Random(i)) for i in (0, 1))
    assert one.key == other.key


def test_signs_of_a_question_do_not_decide_its_split():
    task = GymTask(
        "bars", "number", {n: {"question": f"a|{n} b|", "answer": "1"} for n in range(SIZE)}
    )
    assert all(len(task.problems(split, 20, seed=0)) == 20 for split in ("train", "valid", "test"))


def test_an_answer_that_our_reader_does_not_accept_makes_no_problem():
    for answer in ("7.5/2", "3 or 4", "", "x", "6/4", "\\frac{1}{2}", "1e5", "9" * 61):
        task = GymTask(
            "odd", "number", {n: {"question": "?", "answer": answer} for n in range(SIZE)}
        )
        assert task.make(random.Random(0)) is None


@pytest.mark.parametrize(
    ("form", "gold", "right", "wrong"),
    [
        ("number", "1/2", ["0.5", " 1/2 "], ["2/4", "1", "1/2 1/2", "½", "__import__('os')"]),
        ("number", "7", ["7", "7.0"], ["07 or 8", "7, 8", "[7]", "٧", "3+4", "7" * 9, "seven"]),
        ("word", "True", ["True", " True\n"], ["true", "True False", "True, True", "False", "*"]),
        ("words", "b, a", ["b, a", "b a", "b,a"], ["a, b", "b", "b a a", "['b', 'a']", "b; a"]),
        (
            "rows",
            "1 2\n3 4",
            ["1 2\n3 4\n", "1  2\n 3 4"],
            ["1 2 3 4", "1 2\n3 4\n1 2", "1 2\n4 3", ""],
        ),
    ],
)
def test_each_form_is_read_strictly(form, gold, right, wrong):
    for answer in right:
        assert SCORERS[form](answer, gold).correct, answer
    for answer in [*wrong, "9" * 1_000_000, "\x00", gold + gold, f"{gold}\n{gold}"]:
        assert not SCORERS[form](answer, gold).correct, answer


def test_tables_keep_their_rows():
    task = GymTask("tables", "rows", Tables())
    check_tasks([task])
    problem = task.draw(random.Random(0), "train")
    assert not task.score(problem, task.gold(problem).replace("\n", " ")).well_formed


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UserError, match=r"(?s)no package reasoning-gym.*nalar\[gym\]"):
        open_task("gym_gcd", at="--task")


def test_a_data_set_without_a_scorer_of_ours_is_refused():
    for name in ("countdown", "n_queens", "gdc"):
        with pytest.raises(UserError, match="gcd"):
            open_task(f"gym_{name}", at="--task")


@pytest.fixture(scope="module")
def package():
    pytest.importorskip("reasoning_gym", reason="needs the extra nalar[gym]")
    from reasoning_gym.factory import DATASETS as made

    def refuse(*_args, **_kwargs):
        raise AssertionError("a scorer of the package was called")

    with pytest.MonkeyPatch.context() as patch:
        for cls, _ in made.values():
            patch.setattr(cls, "score_answer", refuse)
        yield made


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_holds_what_a_task_promises(package, name):
    assert name in package
    task = open_task(f"gym_{name}", at="--task")  # which checks its golds
    refuse_overlap([task], [task])
    answers = {}
    for i in range(200):
        if problem := task.make(random.Random(i)):
            assert answers.setdefault(problem.key, task.gold(problem)) == task.gold(problem)
    assert len(answers) > 100


def test_settings_and_levels_of_a_data_set(package):
    task = open_task("gym_gcd,max_numbers=2..4,max_value=50", at="--task")
    assert list(task.levels) == ["max_numbers=2", "max_numbers=3", "max_numbers=4"]
    for word, told in (
        ("gym_gcd,max_number=3", "did you mean 'max_numbers'"),
        ("gym_gcd,max_value=much", "max_value=much"),
        ("gym_gcd,min_value=0", "settings that work"),
        ("gym_gcd,seed=1", "'seed'"),
    ):
        with pytest.raises(UserError, match=told):
            open_task(word, at="--task")
