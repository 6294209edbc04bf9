import itertools
import json
import os
import random
from pathlib import Path

import pytest

from nalar.config import UserError
from nalar.tasks.check import refuse_bad_task, refuse_overlap
from nalar.tasks.latex import quantity
from nalar.tasks.problem import Score
from nalar.tasks.registry import open_task
from nalar.tasks.text import BOXED, TextConfig, TextProblems

GSM8K = {
    "question": "Two eggs and three. How many?",
    "answer": "2+3=<<2+3=5>>5\nof them.\n#### 1,005",
}


def write(path: Path, records) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def sums(count, first=0):
    return [
        {"question": f"What is {i} and {i}?", "answer": 2 * i} for i in range(first, first + count)
    ]


def test_forms_are_told_apart(tmp_path):
    solution = "So \\boxed{2}, no: $\\boxed{\\frac{1}{2}}$."
    for record, gold in (
        (GSM8K, "1,005"),
        ({"problem": "Half?", "solution": solution}, "\\frac{1}{2}"),
        ({"problem": "Half?", "answer": "0.5", "solution": "?"}, "0.5"),
        ({"prompt": "Half of one?", "answer": 0.5}, "0.5"),
    ):
        task = TextProblems(TextConfig(path=write(tmp_path / "a.jsonl", [record]), split="test"))
        (problem,) = task.problems("test", 5, seed=0)
        assert task.gold(problem) == gold
        assert task.score(problem, f"So \\boxed{{{gold}}}.").correct


def test_a_word_opens_a_file(tmp_path):
    path = write(tmp_path / "sums.jsonl", sums(60))
    task = open_task(f"{path},boxed=True,name=doubling", at="--task")
    problem = task.draw(random.Random(0), "train")
    assert task.id == "doubling" and problem.prompt.endswith(BOXED)
    assert task.problems("valid", 9, seed=1) == task.problems("valid", 9, seed=1)
    assert open_task(path, at="--task").id == "sums"
    found = {s: {p.key for p in task.problems(s, 100, 0)} for s in ("train", "valid", "test")}
    assert sum(map(len, found.values())) == 60 == len(set.union(*found.values()))
    refuse_bad_task(task)
    assert task.score(problem, task.guess(random.Random(0), problem)).well_formed
    assert next(task.constants()).isdigit()


def test_a_file_of_train_or_test_problems_stays_what_it_is(tmp_path):
    path = write(tmp_path / "a.jsonl", sums(60))
    train, test = (TextProblems(TextConfig(path=path, split=s)) for s in ("train", "test"))
    assert not train.problems("test", 100, 0)
    assert len(train.problems("train", 100, 0)) + len(train.problems("valid", 100, 0)) == 60
    assert len(test.problems("test", 100, 0)) == 60
    with pytest.raises(UserError, match="no train problem"):
        test.draw(random.Random(0), "train")
    with pytest.raises(UserError, match="trained on too"):
        refuse_overlap([train], [test])
    other = write(tmp_path / "b.jsonl", sums(30, first=100))
    refuse_overlap([train], [TextProblems(TextConfig(path=other, split="test"))])


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([], "no problem"),
        ([{"question": "?"}], "fields question"),
        (
            [{"problem": "Half?", "solution": "no box"}],
            "one answer, as the form math has it: problem, and answer, or",
        ),
        ([{"question": " ", "answer": "5"}], "a question"),
        ([*sums(3), {"question": "what is 1  and 1 ?", "answer": 3}], ":4.*line 2 again"),
        ([*sums(2), ["a list"]], ":3"),
        ([GSM8K, {"question": "Why?", "answer": "no mark"}], ":2"),
        ([{"question": "Why?", "answer": "  "}], "one answer"),
        ([*sums(2), {"question": "Why \ud800?", "answer": "5"}], ":3.*text"),
        ([*sums(2), {"question": "Why?", "answer": "\udfff"}], ":3.*text"),
        ([*sums(2), {"question": "Why?", "answer": float("inf")}], ":3.*one answer"),
        ([*sums(2), {"question": "Why?", "answer": float("nan")}], ":3.*one answer"),
        ([*sums(2), {"question": "Why?", "answer": True}], ":3.*one answer"),
        ([*sums(2), {"question": "Why?", "answer": "5\n6"}], ":3.*one answer"),
        ([*sums(2), {"question": "Why?", "answer": "x" * 501}], ":3.*one answer"),
        ([*sums(2), {"question": "Why?", "answer": "\\boxed{5} \\boxed{6}"}], ":3.*one answer"),
        ([*sums(2), {"question": "y" * 2_000_000, "answer": "5"}], ":3.*1000000"),
    ],
)
def test_bad_records_are_refused_with_their_line(tmp_path, records, told):
    with pytest.raises(UserError, match=f"(?s){told}"):
        TextProblems(TextConfig(path=write(tmp_path / "a.jsonl", records)))


@pytest.mark.parametrize(
    ("given", "gold"),
    [
        (1e22, "1" + "0" * 22),
        (1e-05, "0.00001"),
        (-2.5e-7, "-0.00000025"),
        (4.0, "4.0"),
        (12, "12"),
    ],
)
def test_a_gold_number_of_json_is_a_number_however_json_writes_it(tmp_path, given, gold):
    path = write(tmp_path / "a.jsonl", [{"question": "What?", "answer": given}])
    task = TextProblems(TextConfig(path=path, split="test", golds="numbers"))
    (problem,) = task.problems("test", 9, 0)
    assert task.gold(problem) == gold and task.score(problem, gold).correct


def test_a_gold_integer_beyond_all_floats_is_no_number(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "What?", "answer": 10**400}])
    with pytest.raises(UserError, match="1 whose answer is no number"):
        TextProblems(TextConfig(path=path, golds="numbers"))


def test_a_mark_of_byte_order_is_no_part_of_a_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(sums(1)[0]), encoding="utf-8")
    task = TextProblems(TextConfig(path=str(tmp_path / "a.jsonl"), split="test"))
    assert len(task.problems("test", 9, 0)) == 1


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        open_task(f"{tmp_path}/none.jsonl", at="--task")
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match="UTF-8"):
        open_task(f"{tmp_path}/a.jsonl", at="--task")
    (tmp_path / "a.jsonl").write_text("[" * 100_000)
    with pytest.raises(UserError, match="JSON object"):
        open_task(f"{tmp_path}/a.jsonl", at="--task")


def test_golds_that_are_no_numbers_can_be_left_out(tmp_path):
    path = write(tmp_path / "a.jsonl", [*sums(3), {"question": "Why?", "answer": "\\pi"}])
    task = TextProblems(TextConfig(path=path, golds="numbers", split="test"))
    assert task.num_left_out == 1 and len(task.problems("test", 9, 0)) == 3


def test_a_gold_that_fails_its_own_check_is_shown(tmp_path):
    path = write(tmp_path / "a.jsonl", sums(1))
    task = TextProblems(TextConfig(path=path, split="test"))
    task.score = lambda problem, answer: Score(correct=False, well_formed=True)
    with pytest.raises(UserError, match=r"scored as wrong.*What is 0 and 0"):
        refuse_bad_task(task, ["test"])
    with pytest.raises(UserError, match="no problem in the split train"):
        refuse_bad_task(task)


@pytest.mark.parametrize(
    "answer",
    [
        "\\boxed{5} \\boxed{7}",
        "5, 7",
        "5 or 7",
        "2+3",
        "10/2",
        "५",
        "5" + " " * 10**6,
        "[5]",
        "5 5",
    ],
)
def test_hostile_answers_earn_nothing(tmp_path, answer):
    record = {"question": "What is 2 and 3?", "answer": "5"}
    path = write(tmp_path / "a.jsonl", [record])
    task = TextProblems(TextConfig(path=path, split="test"))
    (problem,) = task.problems("test", 1, 0)
    score = task.score(problem, answer)
    assert (score.correct, score.error) == (False, None)


DATA = Path(os.environ.get("NALAR_DATA", "/nonexistent"))


@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason="needs NALAR_DATA with gsm8k/")
def test_every_answer_of_gsm8k_is_right_and_its_neighbours_is_not():
    tasks = [
        open_task(f"{DATA}/gsm8k/{split}.jsonl,split={split}", at="test")
        for split in ("train", "test")
    ]
    refuse_overlap(tasks[:1], tasks[1:])
    problems = tasks[1].problems("test", 2000, 0)
    assert len(problems) == 1319
    assert all(tasks[1].score(p, f"#### {tasks[1].gold(p)}").correct for p in problems)
    for a, b in itertools.pairwise(problems):
        same = tasks[1].gold(a) == tasks[1].gold(b)
        assert tasks[1].score(a, tasks[1].gold(b)).correct == same


@pytest.mark.skipif(not (DATA / "math500").is_dir(), reason="needs NALAR_DATA with math500/")
def test_every_answer_of_math_is_right_and_no_neighbours_is():
    pytest.importorskip("math_verify", reason="needs the extra nalar[math]")
    task = open_task(f"{DATA}/math500/test.jsonl,split=test", at="test")
    problems = task.problems("test", 500, 0)
    golds = [task.gold(p) for p in problems]
    assert len(problems) == 500
    assert all(task.score(p, g).correct for p, g in zip(problems, golds, strict=True))
    scores = [task.score(p, g) for p, g in zip(problems, golds[1:], strict=False)]
    hits = [(g, n) for g, n, s in zip(golds, golds[1:], scores, strict=False) if s.correct]
    assert all(quantity(gold).value == quantity(neighbour).value for gold, neighbour in hits)
    assert not any(score.error for score in scores)
