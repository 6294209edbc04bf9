"""Programs judged by hidden tests: no program earns anything but by computing what was asked for."""

import json
import random
import time

import pytest

from nalar.config import UserError
from nalar.sandbox.box import Box
from nalar.sandbox.config import SandboxConfig
from nalar.tasks.config import ProgramsConfig
from nalar.tasks.problem import Problem
from nalar.tasks.programs import LAST, MIDDLE, Programs, program_of, source, worked_out


@pytest.fixture(
    scope="module", params=["namespaces", pytest.param("bubblewrap", marks=pytest.mark.slow)]
)
def task(request):
    box = Box(SandboxConfig(tier=request.param, wall_s=2.0, cpu_s=1))
    try:
        assert box.tier == request.param
    except UserError as why:
        pytest.skip(str(why))
    made = Programs(ProgramsConfig(min_tier="limits"))
    made.close()
    made._box, made.tier = box, box.tier
    yield made
    made.close()


SUM = Problem(
    "programs",
    "k",
    "Keep only the even numbers, and then return the sum.",
    {"plan": [["even", 2], ["sum", 0]], "tests": [[], [1, 2, 4], [-2, 3], [7, 7], [10, -4, 5, 2]]},
)
RIGHT = "def f(xs):\n    return sum(x for x in xs if x % 2 == 0)\n"


def test_programs_of_any_style_that_compute_it_are_right(task):
    for answer in (
        RIGHT,
        f"Here it is:\n```python\n{RIGHT}```\nIt adds them up.",
        f"```\nimport math\n{RIGHT}```",
        "def helper(x):\n    return x % 2 == 0\n\ndef f(xs):\n    return sum(filter(helper, xs))",
        "from functools import reduce\ndef f(xs):\n    return reduce(lambda a, x: a + x * (x % 2 == 0), xs, 0)",
    ):
        score = task.score(SUM, answer)
        assert score.correct and score.well_formed and score.error is None
    votes = {task.score(SUM, a).canonical for a in (RIGHT, RIGHT.replace("xs", "ys"))}
    assert len(votes) == 1


FORGERIES = {
    "zero": "def f(xs): return 0",
    "the input": "def f(xs): return xs",
    "says passed": "print('passed')\ndef f(xs):\n    print('passed')\n    return 'passed'",
    "appends passed": """
import sys
def f(xs):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            if isinstance(value, list): value.append("passed")
            if isinstance(value, dict): value["passed"] = True
        frame = frame.f_back
    return "passed"
""",
    "equal to everything": """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __radd__(self, other): return self
def f(xs): return Any()
""",
    "an int that is equal": """
class Int(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(xs): return Int(0)
""",
    "writes the verdict": """
import json, os
text = json.dumps({"values": [[True, 0]] * 5, "correct": True, "outcome": "done"}).encode()
for n in range(0, 40):
    try: os.write(n, text)
    except OSError: pass
os._exit(0)
def f(xs): return 0
""",
    "says that the box is broken": """
import os
for n in range(0, 40):
    try: os.write(n, b'{"broken": "no verdict"}\\n')
    except OSError: pass
os._exit(1)
def f(xs): return 0
""",
    "another json": """
import json
json.dumps = lambda *a, **k: '{"values": [[true, "passed"], [true, 1], [true, 1], [true, 1], [true, 1]]}'
def f(xs): return 0
""",
    "compares otherwise": """
import builtins, operator
builtins.all = lambda *a: True
builtins.type = lambda *a: int
operator.eq = lambda *a: True
def f(xs): return 1
""",
    "reads the tests": """
import gc, os
def f(xs):
    for path in ("hidden_tests.json", "/proc/self/environ", "/proc/1/cmdline", "/work"):
        try: return open(path).read()
        except OSError: pass
    return max((o for o in gc.get_objects() if type(o) is list), key=len)
""",
    "kills": "import os, signal\ndef f(xs):\n    os.kill(os.getppid(), signal.SIGKILL)\n    return 0",
    "forks": "import os\ndef f(xs):\n    while True:\n        if os.fork(): return 0",
    "ten gigabytes": "def f(xs): return len(bytearray(10**10))",
    "endless loop": "def f(xs):\n    while True: pass",
    "endless at load": "while True: pass\ndef f(xs): return 0",
    "endless recursion": "def f(xs): return f(xs)",
    "power tower": "def f(xs): return 9**9**9**9",
    "ignores signals": """
import signal
def f(xs):
    for number in range(1, 60):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    while True: pass
""",
    "floods": "def f(xs):\n    while True: print('x' * 10**6)",
    "a megabyte back": "def f(xs): return 'x' * 3_000_000",
    "digits of another script": "def f(xs): return '٦' if xs else '٠'",
    "floats": "def f(xs): return float(sum(x for x in xs if x % 2 == 0))",
    "booleans and lists": "def f(xs): return [sum(x for x in xs if x % 2 == 0)]",
    "texts": "def f(xs): return str(sum(x for x in xs if x % 2 == 0))",
    "a list of answers": "def f(xs): return list(range(-10, 20))",
    "raises": "def f(xs): raise AssertionError('passed')",
    "exits well": "import sys\ndef f(xs): sys.exit(0)",
    "a generator": "def f(xs): yield 0",
    "no function": "f = 3\ndef f(",
}


def test_every_forgery_reaches_the_sandbox():
    unread = [name for name, answer in FORGERIES.items() if program_of(answer) is None]
    assert unread == []


@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_earns_anything_or_takes_longer_than_its_limit(task, name):
    start = time.perf_counter()
    score = task.score(SUM, FORGERIES[name])
    assert time.perf_counter() - start < 2.0 + 3.0
    assert not score.correct
    assert score.error is None, "a forger must not get off as an error of the verifier"
    assert score.timed_out == (name in TOO_LONG)


TOO_LONG = {"endless loop", "endless at load", "power tower", "ignores signals", "floods"}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "0",
        "6",
        "def g(xs): return 0",
        "lambda xs: 0",
        "```python\n```",
        "```def f(xs): return 0",
    ]
    + [f"```\n{RIGHT}```\n```\n{RIGHT}```", RIGHT + "#" * 1_000_000, "\x00" * 5, "def f" * 1000],
)
def test_what_holds_no_one_program_never_reaches_the_sandbox(answer):
    task = Programs.__new__(Programs)  # without a sandbox
    score = task.score(SUM, answer)
    assert (score.correct, score.well_formed, score.error) == (False, False, None)


def test_the_program_is_the_one_block_that_defines_f():
    text = f"Run `f`:\n```python\n{RIGHT}```\nFor example:\n```\n>>> f([2])\n2\n```"
    assert program_of(text) == RIGHT
    assert program_of(f"\n {RIGHT}") == RIGHT.strip()
    assert program_of(f"{RIGHT}\n```\nnot code") is None


def test_steps_do_in_python_what_they_do_here(task):
    rng = random.Random(0)
    lists = [[], *([rng.randint(-9, 9) for _ in range(n)] for n in (1, 2, 5, 9))]
    plans = [[[name, 3], ["list", 0]] for name in MIDDLE] + [[[name, 0]] for name in LAST]
    for plan in plans:
        outcome = task._box.call(source(plan), "f", [[xs] for xs in lists])
        wanted = [worked_out(plan, xs) for xs in lists]
        assert [value for _, value in outcome.values] == wanted


def test_steps_do_what_their_words_say():
    xs = [3, -2, 3, 8, 5, -7]
    for name, k, wanted in (
        ("even", 0, [-2, 8]),
        ("odd", 0, [3, 3, 5, -7]),
        ("above", 3, [8, 5]),
        ("below", 3, [-2, -7]),
        ("add", 2, [5, 0, 5, 10, 7, -5]),
        ("times", 2, [6, -4, 6, 16, 10, -14]),
        ("square", 0, [9, 4, 9, 64, 25, 49]),
        ("negate", 0, [-3, 2, -3, -8, -5, 7]),
        ("reverse", 0, [-7, 5, 8, 3, -2, 3]),
        ("sort", 0, [-7, -2, 3, 3, 5, 8]),
        ("unique", 0, [3, -2, 8, 5, -7]),
        ("drop", 2, [3, 8, 5, -7]),
    ):
        assert worked_out([[name, k], ["list", 0]], xs) == wanted
    ends = {name: worked_out([[name, 0]], xs) for name in LAST}
    assert ends == {"list": xs, "sum": 10, "count": 6, "max": 8, "min": -7, "last": -7}
    assert [worked_out([[name, 0]], []) for name in LAST] == [[], 0, 0, 0, 0, 0]


def test_problems_hold_no_answers_and_tests_tell_plans_apart(task):
    problems = task.problems("train", 60, seed=0)
    golds = [task.gold(p) for p in problems]
    for problem in problems:
        assert set(problem.data) == {"plan", "tests"} and [] in problem.data["tests"]
        assert json.loads(json.dumps(problem.data)) == problem.data
    for problem, gold in zip(problems[:20], golds, strict=False):
        assert task.score(problem, gold).correct
    same = 0
    for problem in problems:
        wanted = [worked_out(problem.data["plan"], xs) for xs in problem.data["tests"]]
        for other in problems:
            if other is not problem:
                same += wanted == [worked_out(other.data["plan"], x) for x in problem.data["tests"]]
    assert same <= 0.003 * 60 * 59  # different words for the same thing are rare


def test_a_sandbox_that_fails_is_an_error_and_no_verdict(task):
    class Broken:
        def call(self, *_):
            return type("Outcome", (), {"kind": "broken", "why": "no memory"})

    made = Programs.__new__(Programs)
    made._box = Broken()
    score = made.score(SUM, RIGHT)
    assert score.error == "sandbox: no memory" and not score.correct and not score.timed_out
