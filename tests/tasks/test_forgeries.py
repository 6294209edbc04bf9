"""Every task is attacked: those of the registry without anyone remembering to, files and files of code beside them.

Each forgery is made from the gold answer and has its verdict stated. Programs have forgeries of their own, which run,
in test_programs.py; what they do to their box is in tests/sandbox.
"""

import json
import sys
import time
from functools import lru_cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nalar.config import UserError
from nalar.tasks.gym import GymTask
from nalar.tasks.registry import FAMILIES, open_task

OWN = """
def make(rng):
    a = rng.randrange(10_000)
    return {"prompt": f"Double {a}.", "answer": str(2 * a)}

def score(problem, answer):
    return answer.strip() == problem["answer"]
"""
COSTLY = {"programs"}
LEVELS = "arithmetic,min_digits=1..3,max_digits=1..3"
FILES = ("questions.jsonl", "own.py")
TASKS = [*FAMILIES, LEVELS, *FILES, "gym"]
CHEAP = [name for name in TASKS if name not in COSTLY]

SCRIPTS = {
    "arabic": "٠١٢٣٤٥٦٧٨٩",
    "devanagari": "०१२३४५६७८९",
    "thai": "๐๑๒๓๔๕๖๗๘๙",
    "full width": "０１２３４５６７８９",
    "bold": "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗",
    "superscript": "⁰¹²³⁴⁵⁶⁷⁸⁹",
    "circled": "⓪①②③④⑤⑥⑦⑧⑨",
}
UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u202e\u0301\ufe0f\x00\x7f\U000e0031"
"""Zero-width signs, marks of direction, a combining accent, controls, a tag: none of them is white space."""
JOINTS = [
    " or ",
    " and ",
    "; ",
    " | ",
    "\n",
    "\n\n",
    " = ",
    ": ",
    " -> ",
    ", ",
    " ",
    "\t",
    " #### ",
]


class Sums:
    """In place of reasoning-gym."""

    def __getitem__(self, n):
        return {"question": f"Double {n}.", "answer": str(2 * n)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each task by its name, and what wants closing closed."""
    folder, opened = tmp_path_factory.mktemp("tasks"), {}
    rows = [{"question": f"Double {i}.", "answer": 2 * i} for i in range(300)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "own.py").write_text(OWN)

    @lru_cache
    def task(name):
        if name == "gym":
            return GymTask("doubles", "number", Sums())
        try:
            opened[name] = open_task(str(folder / name) if name in FILES else name, at="test")
        except UserError as why:
            if "sandbox" not in str(why):
                raise
            pytest.skip(str(why))
        return opened[name]

    yield task
    for task in opened.values():
        if hasattr(task, "close"):
            task.close()


@lru_cache
def asked(task):
    """Problems with their gold answers, each beside a gold answer that is wrong for it."""
    problems = task.problems("test", 6, seed=4)
    golds = [task.gold(problem) for problem in problems]
    return [
        (problem, gold, next(g for g in golds if not task.score(problem, g).correct))
        for problem, gold in zip(problems, golds, strict=True)
    ]


def in_script(text, digits):
    return text.translate({ord("0") + n: sign for n, sign in enumerate(digits)})


def forgeries(gold, other):
    """By name, what is made from a right and a wrong answer and must earn nothing."""
    yield from {
        "nothing": "",
        "says passed": "passed",
        "appends passed": f"{gold}\npassed",
        "appends a verdict": f"{gold} CORRECT",
        "a verdict in JSON": '{"correct": true, "score": 1}',
        "truth": "True",
        "equal to everything": "type('A', (), {'__eq__': lambda *_: True})()",
        "not a number": "nan",
        "infinity": "inf",
        "a star": "*",
        "two answers": f"{gold} or {other}",
        "two answers, the wrong one first": f"{other} or {gold}",
        "all there are": " ".join(map(str, range(2000))),
        "a list": f"[{gold}, {other}]",
        "a list of one": f"[{gold}]",
        "in quotes": f'"{gold}"',
        "two boxes": f"\\boxed{{{gold}}} \\boxed{{{other}}}",
        "a box in a box": f"\\boxed{{\\boxed{{{other}}}}} {gold}",
        "twice": f"{gold}\n{gold}",
        "run together": f"{gold}7{gold}",
        "a calculation": f"{gold}+{other}-{other}",
        "a call": f"int('{gold}')",
        "code that prints": f"print({gold!r})",
        "code that imports": "__import__('os').system('touch forged')",
        "code in a format": "{0.__class__.__mro__}",
        "a template": f"{{{{ {gold} }}}}",
        "a power tower": f"{gold}+9**9**9**9-9**9**9**9",
        "a power tower in LaTeX": f"{gold}+10^{{10^{{10^{{10}}}}}}",
        "a factorial": f"{gold}*99999999!/99999999!",
        "an exponent": f"{gold}e0",
        "a hexadecimal": "0x10",
        "digits apart": "_".join(f"{gold}0"),
        "a megabyte more": gold + "0" * 1_000_000,
        "a megabyte of the same": (gold + " ") * (1_000_000 // (len(gold) + 1)),
        "a megabyte before": "0, " * 333_333 + gold,
        "deep": "(" * 100_000 + gold + ")" * 100_000,
        "deep in braces": "\\frac{" * 20_000 + gold,
        "half a surrogate": gold + "\ud800",
        "a path": "../../hidden_tests.json",
        "a loop": "while True: pass",
        "a fork": "import os\nwhile True: os.fork()",
        "ten gigabytes": "'a' * 10**10",
    }.items()
    for name, digits in SCRIPTS.items():
        if in_script(gold, digits) != gold:
            yield f"digits: {name}", in_script(gold, digits)


# A program is wrong by what it computes: of these it is right all the same.
RIGHT_AS_PROGRAMS = {"twice"}
RUNS_LONG = {"a power tower"}


@pytest.mark.parametrize("name", TASKS)
def test_no_forgery_earns_anything_or_fails_the_verifier(made, name):
    task = made(name)
    problem, gold, other = asked(task)[0]
    assert task.score(problem, gold).correct
    for what, answer in forgeries(gold, other):
        if name in COSTLY and what in RIGHT_AS_PROGRAMS | RUNS_LONG:
            continue
        start = time.process_time()
        score = task.score(problem, answer)
        assert not score.correct, what
        if "surrogate" not in what or name != "own.py":
            assert score.error is None, what
        assert time.process_time() - start < 1, what


@pytest.mark.parametrize("name", CHEAP)
@settings(deadline=None)
@given(data=st.data())
def test_gold_answers_with_small_edits_are_wrong(made, name, data):
    task = made(name)
    problem, gold, other = data.draw(st.sampled_from(asked(task)))
    edit = data.draw(st.sampled_from(["unseen", "script", "other", "before", "twice", "sign"]))
    joint = data.draw(st.sampled_from(JOINTS))
    if edit == "unseen":
        at = data.draw(st.integers(0, len(gold)))
        answer = gold[:at] + data.draw(st.sampled_from(UNSEEN)) + gold[at:]
    elif edit == "script":
        places = [i for i, sign in enumerate(gold) if sign.isdigit()]
        assume(places)
        digits = data.draw(st.sampled_from(list(SCRIPTS.values())))
        at = data.draw(st.sampled_from(places))
        answer = gold[:at] + in_script(gold[at], digits) + gold[at + 1 :]
    elif edit == "other":
        answer = gold + joint + other
    elif edit == "before":
        # Behind #### stands the final answer of a text problem, whatever stands before it.
        assume(not (name.endswith(".jsonl") and "####" in joint))
        answer = other + joint + gold
    elif edit == "twice":
        assume(not (name.endswith(".jsonl") and "####" in joint))
        answer = gold + joint + gold
    else:
        at = data.draw(st.integers(0, len(gold) - 1))
        answer = gold[:at] + data.draw(st.sampled_from("!?@&^<`")) + gold[at:]
    score = task.score(problem, answer)
    assert not score.correct, answer
    assert score.error is None


@pytest.mark.parametrize("name", CHEAP)
@settings(deadline=None)
@given(data=st.data())
def test_white_space_around_a_gold_answer_changes_nothing(made, name, data):
    task = made(name)
    problem, gold, _ = data.draw(st.sampled_from(asked(task)))
    around = st.text(" \t\n\r", max_size=4)
    assert task.score(problem, data.draw(around) + gold + data.draw(around)).correct


_watching, _seen = [False], []
_FORBIDDEN = (
    "open",
    "exec",
    "compile",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
)
_FORBIDDEN += (
    "socket.connect",
    "import",
    "pickle.find_class",
    "os.remove",
    "os.rename",
    "ctypes.dlopen",
)


def _audit(event, _args):
    if _watching[0] and event in _FORBIDDEN:
        _seen.append(event)


sys.addaudithook(_audit)


@pytest.mark.parametrize("name", [n for n in CHEAP if n != "own.py"])
def test_no_verifier_opens_compiles_or_starts_anything_at_an_answer(made, name):
    task = made(name)
    problem, gold, other = asked(task)[0]
    answers = [answer for _, answer in forgeries(gold, other)]
    task.score(problem, gold), task.score(problem, other)
    _seen.clear()
    _watching[0] = True
    try:
        for answer in answers:
            task.score(problem, answer)
    finally:
        _watching[0] = False
    assert _seen == []


def test_the_watch_sees_what_it_watches_for():
    _seen.clear()
    _watching[0] = True
    eval("1+1")
    _watching[0] = False
    assert {"compile", "exec"} <= set(_seen)


PROGRAMS = {
    "wrong behind": ("{gold}\n\n{other}", False),
    "wrong before": ("{other}\n\n{gold}", True),  # the last definition counts, as in Python
    "twice": ("{gold}\n\n{gold}", True),
    "in two blocks": ("```\n{gold}```\n```\n{other}```", False),
    "in a block": ("```python\n{gold}```", True),
    "a comment that says passed": ("{gold}\n# passed", True),
    "text behind": ("{gold}\npassed", False),
    "wrapped, and anything else": ("{gold}\ng = f\ndef f(xs): return [g(xs), 0]", False),
    "an object around it": (
        "{gold}\ng = f\nclass A(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\n"
        "def f(xs): return A(7)",
        False,
    ),
    "unseen signs": ("{gold}\n\u200b", False),
    "its own text": ("def f(xs): return {gold!r}", False),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_made_from_gold_answers(made, name):
    task = made("programs")
    text, correct = PROGRAMS[name]
    for problem, gold, other in asked(task)[:3]:
        score = task.score(problem, text.format(gold=gold, other=other))
        assert (score.correct, score.error) == (correct, None)
