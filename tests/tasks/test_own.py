import os
import random
import re
from pathlib import Path

import pytest

from nalar.config import UserError
from nalar.tasks import own
from nalar.tasks.registry import open_task

DOC = Path(__file__).parents[2] / "docs" / "tasks.md"
GOOD = """
def make(rng):
    a = rng.randrange(1000)
    return {"prompt": f"Double {a}.", "answer": str(2 * a), "a": a}

def score(problem, answer):
    if answer == "hang":
        while True: pass
    if answer == "raise":
        raise KeyError("x")
    if answer == "die":
        import os; os._exit(3)
    if answer == "number":
        return 1
    return answer.strip() == str(2 * problem["a"])
"""


def write(folder: Path, text: str, name: str = "doubling.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_the_example_of_the_documentation_is_a_task(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert example.count("\n") < 30
    task = open_task(write(tmp_path, example, "ages.py"), at="--task")
    assert task.id == "ages"
    found = {s: task.problems(s, 40, seed=3) for s in ("train", "valid", "test")}
    again = open_task(str(tmp_path / "ages.py"), at="--task")
    assert found == {s: again.problems(s, 40, seed=3) for s in found}
    keys = [problem.key for problems in found.values() for problem in problems]
    assert len(set(keys)) == 120
    for problem in found["test"]:
        assert task.score(problem, task.gold(problem)).correct
        assert not task.score(problem, task.gold(problem) + "1").correct
    task.close(), again.close()


@pytest.fixture
def task(tmp_path):
    made = open_task(write(tmp_path, GOOD), at="--task")
    yield made
    made.close()


def test_what_a_score_raises_or_returns_wrongly_is_an_error_with_its_line(task):
    problem = task.draw(random.Random(0), "train")
    for answer, told in (
        ("raise", "KeyError: 'x' in line 10"),
        ("number", "returned 1, wanted True or False"),
        ("die", "exit status 3"),
    ):
        score = task.score(problem, answer)
        assert not score.correct and told in score.error and not score.timed_out
    assert task.score(problem, task.gold(problem)).correct


def test_a_score_that_hangs_is_killed_and_counted_as_a_timeout(task, monkeypatch):
    monkeypatch.setattr(own, "SCORE_S", 0.3)
    problem = task.draw(random.Random(0), "train")
    score = task.score(problem, "hang")
    assert score.timed_out and score.error == "score(): no answer within 0.3 s"
    assert task.score(problem, task.gold(problem)).correct


def test_hostile_answers_earn_nothing(task):
    problem = task.draw(random.Random(0), "train")
    for answer in ("", "passed", "9" * 10**6, "\x00", "\ud800", "2*500", "True", "[0, 1, 2]"):
        score = task.score(problem, answer)
        assert not score.correct and score.error is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def make(rng): pass", "no function score"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero in line 1"),
        ("def make(", "SyntaxError"),
        (GOOD.replace("str(2 * a)", "2 * a"), "prompt.*answer"),
        (GOOD.replace("str(2 * a)", "str(a)"), "scored as wrong.*Double"),
        (GOOD.replace("rng.randrange", "__import__('random').randrange"), "one seed"),
        (
            "import random\nSALT = random.random()\n" + GOOD.replace('"a": a', '"a": a, "s": SALT'),
            "one seed",
        ),
        (
            GOOD.replace("return answer.strip()", "return int(answer) and answer"),
            "no answer.*ValueError.*in line",
        ),
        (GOOD.replace('"Double {a}."', '"Double {a}. \\ud800"'), "plain JSON|text"),
        ("raise SystemExit(3)\n" + GOOD, "exit status 3"),
        pytest.param(
            GOOD.replace("1000)", "3)"),
            "a configuration|settings with problems in every split",
            marks=pytest.mark.slow,  # it is drawn from until nothing new can come
        ),
        (GOOD.replace('"a": a', '"a": {1}'), "plain JSON|set"),
        (
            GOOD.replace('== str(2 * problem["a"])', "!= ''"),
            "'this is no answer' scored as correct",
        ),
        (GOOD.replace("rng.randrange(1000)", "rng.nothing()"), "nothing.*in line 3"),
    ],
)
def test_a_task_that_cannot_be_trusted_is_refused_and_says_why(tmp_path, text, told):
    with pytest.raises(UserError, match=f"(?s){told}"):
        open_task(write(tmp_path, text), at="--task")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_task(f"{tmp_path}/none.py", at="--task")
    with pytest.raises(UserError, match="one of path"):
        open_task(write(tmp_path, GOOD) + ",size=3", at="--task")


def test_the_file_is_loaded_in_another_process_and_may_import_its_neighbours(tmp_path):
    write(tmp_path, "BASE = 7", "beside.py")
    text = f"import os, beside\nassert os.getpid() != {os.getpid()}\n" + GOOD
    task = open_task(write(tmp_path, text), at="--task")
    task.close()


def test_a_bar_in_every_prompt_leaves_problems_in_every_split(tmp_path):
    barred = GOOD.replace("Double {a}.", "|x| = {a}; 2|x| = ?")
    made = open_task(write(tmp_path, barred), at="--task")
    assert all(len(made.problems(split, 5, seed=1)) == 5 for split in ("train", "valid", "test"))
    made.close()


def test_a_worker_that_answers_another_question_is_an_error_and_no_verdict(task, monkeypatch):
    problem = task.draw(random.Random(0), "train")
    monkeypatch.setattr(task._worker, "ask", lambda request, timeout_s: {"made": {}})
    assert task.score(problem, "1").error == "score(): an answer to another question"
    monkeypatch.setattr(task._worker, "ask", lambda request, timeout_s: {"correct": True})
    with pytest.raises(UserError, match="make"):
        task.draw(random.Random(0), "train")
