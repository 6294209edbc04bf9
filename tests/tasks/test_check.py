"""What is refused before a run begins, each with the problem at fault."""

import json
import random
from dataclasses import replace

import pytest

from nalar.config import UserError
from nalar.tasks.arithmetic import Arithmetic
from nalar.tasks.check import check_tasks, refuse_overlap
from nalar.tasks.config import ArithmeticConfig
from nalar.tasks.problem import Score
from nalar.tasks.registry import FAMILIES, open_task
from nalar.tasks.text import TextConfig, TextProblems


def questions(path, count, *, first=0, split="hash", name=None, ask="What is {} and {}?"):
    rows = [{"question": ask.format(i, i), "answer": 2 * i} for i in range(first, first + count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return TextProblems(TextConfig(path=str(path), split=split, name=name))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_let_through(name):
    try:
        task = open_task(name, at="test")
    except UserError as why:
        if "sandbox" not in str(why):
            raise
        pytest.skip(str(why))
    check_tasks([task, task], reward=lambda problem, score: float(score.correct))


def test_a_file_for_training_and_another_that_is_held_out_are_let_through(tmp_path):
    train = questions(tmp_path / "a.jsonl", 40, split="train")
    test = questions(tmp_path / "b.jsonl", 40, first=100, split="test")
    check_tasks([train, Arithmetic()], [test])


def test_no_task_is_refused():
    with pytest.raises(UserError, match="no task"):
        check_tasks([])


def test_a_gold_answer_that_is_wrong_is_shown_with_its_problem():
    class Swapped(Arithmetic):
        def score(self, problem, answer):
            score = super().score(problem, answer)
            return replace(score, correct=not score.correct)

    with pytest.raises(UserError, match=r"(?s)task arithmetic.*scored as wrong.*What is \d"):
        check_tasks([Swapped()])


def test_a_verifier_that_fails_at_what_is_no_answer_is_shown():
    class Fails(Arithmetic):
        def score(self, problem, answer):
            return super().score(problem, answer) if answer else Score(False, False, error="broken")

    with pytest.raises(UserError, match=r"the answer '' failed: broken.*What is \d"):
        check_tasks([Fails()])


@pytest.mark.parametrize("earned", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_a_reward_that_cannot_be_computed_with_is_shown_with_its_problem(earned):
    with pytest.raises(
        UserError, match=r"a reward of (-?nan|-?inf|1e[+]39) for its own answer.*What is \d"
    ):
        check_tasks([Arithmetic()], reward=lambda problem, score: earned)


def test_a_task_without_train_problems_cannot_be_trained_on(tmp_path):
    test = questions(tmp_path / "a.jsonl", 40, split="test")
    with pytest.raises(UserError, match="no problem in the split train"):
        check_tasks([test])
    with pytest.raises(UserError, match="no problem in the split valid"):
        check_tasks([Arithmetic()], [_without_problems()])


def _without_problems():
    task = Arithmetic()
    task.id, task.problems = "empty", lambda split, n, seed: []
    return task


def test_the_same_problem_twice_is_shown():
    class Repeats(Arithmetic):
        def problems(self, split, n, seed):
            found = super().problems(split, n, seed)
            return [*found, replace(found[3], key="another key", prompt=found[3].prompt.upper())]

    with pytest.raises(UserError, match=r"the same problem twice.*WHAT IS"):
        check_tasks([Repeats()])


def test_a_held_out_question_that_is_trained_on_is_shown(tmp_path):
    train = questions(tmp_path / "a.jsonl", 40, split="train")
    test = questions(tmp_path / "b.jsonl", 40, first=39, split="test")
    with pytest.raises(UserError, match=r"task b.*trained on too by a.*What is 39 and 39"):
        check_tasks([train], [test])


def test_splits_of_two_tasks_that_are_trained_on_are_compared_too(tmp_path):
    train = questions(tmp_path / "a.jsonl", 40, split="train")
    hashed = questions(tmp_path / "b.jsonl", 40, split="hash")
    with pytest.raises(UserError, match=r"task b: got a test problem that is trained on too by a"):
        check_tasks([train, hashed])
    check_tasks([hashed])


def test_a_prompt_that_stands_in_two_splits_is_shown_though_its_keys_differ():
    class Loose(Arithmetic):
        def make(self, rng):
            return replace(super().make(rng), key=str(rng.random()))

    loose = Loose(ArithmeticConfig(max_terms=2, max_digits=1))
    with pytest.raises(UserError, match=r"trained on too; the problem: 'What is \d"):
        refuse_overlap([loose], [loose])


def test_two_tasks_of_one_id_are_refused():
    with pytest.raises(UserError, match=r"(?s)two tasks of this id.*num_numbers=3\.\.5"):
        check_tasks([Arithmetic(), Arithmetic(ArithmeticConfig(max_digits=3))])
    with pytest.raises(UserError, match="two tasks of this id"):
        check_tasks([Arithmetic()], [Arithmetic()])


def test_the_check_draws_nothing_from_the_random_numbers_of_a_run():
    random.seed(5)
    before = random.getstate()
    check_tasks([Arithmetic()])
    assert random.getstate() == before
