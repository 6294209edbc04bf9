"""What every family promises, in its usual settings and in others."""

import itertools
import json
import random
import time
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalar.config import UserError
from nalar.tasks.family import split_of_key
from nalar.tasks.problem import Split
from nalar.tasks.registry import FAMILIES, open_task

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
HARDER = [
    "countdown,num_numbers=4,max_number=12,max_intermediate=1000",
    "arithmetic,min_terms=3,max_terms=6,max_digits=4,operators=+-*/,parentheses_frac=0.5",
    "linear,max_denominator=6",
    "linear,unknowns=3,max_coefficient=5,max_solution=9",
    "sequence,num_shown=7,rules=growing+turns,max_step=30",
    "graph,num_nodes=10,extra_edges=8,min_hops=3,max_length=9",
    "hailstone,min_steps=24,max_steps=24",
    "grid,people=4",
    "grid,people=3,things=3,direct_frac=0",
    "sorting,items=words,max_items=9",
    "strings,actions=shift+dedupe,max_letters=15",
    "units,imperial=True,decimals=2,quantities=length+mass+temperature",
    "calendar,max_days=400,first_year=1899",
    "general,acts=thank+describe,languages=id",
    "safety,languages=en,harmful_frac=0.8",
]
COSTLY = "programs"
"""Scored in a sandbox: it keeps the same promises on fewer problems, and has tests of its own."""
USUAL = [name for name in FAMILIES if name != COSTLY]
WORDS = [*FAMILIES, *(pytest.param(word, marks=pytest.mark.slow) for word in HARDER)]
# Chance of the best constant, and of one blind guess, at most; in the usual settings.
BLIND = {
    "countdown": (0.01, 0.12),
    "chain_sum": (0.08, 0.06),
    "arithmetic": (0.03, 0.02),
    "linear": (0.06, 0.05),
    "sequence": (0.03, 0.02),
    "graph": (0.03, 0.45),
    "grid": (0.08, 0.06),
    "hailstone": (0.03, 0.02),
    "sorting": (0.01, 0.12),
    "strings": (0.20, 0.30),
    "units": (0.03, 0.10),
    "calendar": (0.09, 0.15),
    "general": (0.01, 0.01),
    "safety": (0.3, 0.55),
}
HOSTILE = [
    "",
    " ",
    "\x00",
    "passed",
    "True",
    "None",
    "nan",
    "inf",
    "1e9",
    "0x10",
    "1_000",
    "١٢",
    "²",
    "１２",
    "9**9**9**9",
    "10^(10^10)",
    "9" * 1_000_000,
    "A-" * 500_000,
    " " * 1_000_000,
    "(" * 100_000,
    "1 2 3 4 5 6 7 8 9",
    "1 or 2",
    "\\boxed{1} \\boxed{2}",
    "0/0",
    "1/0",
    "__import__('os').system('false')",
    "answer: 5",
    "*",
    "any",
]


@pytest.fixture(scope="module", params=WORDS)
def task(request):
    try:
        made = open_task(request.param, at="test")
    except UserError as why:
        if request.param != COSTLY:
            raise
        pytest.skip(str(why))
    return made


def test_the_same_seed_gives_the_same_problems(task, request):
    again = open_task(request.node.callspec.params["task"], at="test")
    first = task.problems("test", 30, seed=3)
    assert first == again.problems("test", 30, seed=3)
    assert first[:10] == task.problems("test", 10, seed=3)
    assert first != task.problems("test", 30, seed=4)
    drawn = [task.draw(random.Random(9), "train") for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_splits_share_no_problem(task):
    counts = {"train": 100, "valid": 40, "test": 40}
    found = {split: task.problems(split, counts[split], seed=0) for split in SPLITS}
    seen: dict[str, str] = {}
    for split, problems in found.items():
        assert len({p.key for p in problems}) == len({p.prompt for p in problems})
        assert len(problems) == counts[split], "too few problems to train on"
        rng = random.Random(split)
        for problem in [*problems, *(task.draw(rng, split) for _ in range(10))]:
            assert seen.setdefault(problem.prompt, split) == split
            assert seen.setdefault(problem.key, split) == split
            if task.id != "countdown":  # which goes by its numbers, in a test of its own
                assert split_of_key(problem.key) == split


def test_gold_answers_are_right_and_what_is_wrong_is_not(task):
    problems = task.problems("valid", 4 if task.id == COSTLY else 60, seed=1)
    golds = [task.gold(problem) for problem in problems]
    for problem, gold in zip(problems, golds, strict=True):
        score = task.score(problem, gold)
        assert score.correct and score.well_formed and score.canonical and score.error is None
        assert task.score(problem, f" {gold}\n").correct
        twice = (f"{gold}-{gold}", f"{gold}; {gold}", f"{gold} {gold}")
        for wrong in (gold + "!", "?" + gold, *(() if task.id == COSTLY else twice)):
            assert not task.score(problem, wrong).correct
        assert not task.score(problem, problem.prompt).correct
        echoed = problem.prompt.removeprefix("What is ").removesuffix("?")
        assert not task.score(problem, echoed).correct
    for problem, gold in zip(problems, golds[1:], strict=False):
        swapped, own = task.score(problem, gold), task.score(problem, task.gold(problem))
        is_one_of_many = task.id in ("graph", "countdown")
        assert not swapped.correct or is_one_of_many or swapped.canonical == own.canonical


@pytest.mark.parametrize(
    "word",
    [
        "sequence,rules=ratio,max_step=10000,num_shown=20,max_start=100000",
        "arithmetic,min_terms=6,max_terms=12,max_digits=12,operators=*",
        "linear,max_denominator=100,max_solution=10000,max_coefficient=1000",
        "hailstone,min_steps=60,max_steps=60,max_start=1000000,max_add=999,max_value=1000000000",
        "sorting,max_items=50,min_items=50,max_number=1000000000",
        "strings,max_letters=60,min_letters=60",
        "units,max_value=1000000000,decimals=6,imperial=True",
        "calendar,first_year=1600,last_year=9000,max_days=100000",
        "chain_sum,max_terms=50,min_terms=50",
    ],
)
def test_gold_answers_are_right_in_the_widest_settings_too(word):
    task = open_task(word, at="test")
    problems = [problem for split in SPLITS for problem in task.problems(split, 40, seed=0)]
    assert len(problems) > 100
    assert all(task.score(problem, task.gold(problem)).correct for problem in problems)


def test_what_a_verifier_needs_survives_json(task):
    for problem in task.problems("train", 20, seed=2):
        data = json.loads(json.dumps(problem.data))
        read = type(problem)(problem.task, problem.key, problem.prompt, data)
        assert task.gold(read) == task.gold(problem)
        assert task.score(read, task.gold(problem)).correct


def test_one_prompt_has_one_answer(task):
    by_prompt = {}
    rng = random.Random(5)
    for _ in range(20 if task.id == COSTLY else 500):
        problem = task.draw(rng, "train")
        other = by_prompt.setdefault(problem.prompt, problem)
        assert task.score(other, task.gold(problem)).correct
        assert task.score(problem, task.gold(other)).correct


def test_hostile_answers_are_wrong_at_once(task):
    problems = task.problems("test", 3, seed=0)
    start = time.perf_counter()
    for problem in problems:
        for answer in HOSTILE:
            score = task.score(problem, answer)
            assert not score.correct and score.error is None
    assert time.perf_counter() - start < 1


def test_guesses_have_the_right_form(task):
    rng = random.Random(0)
    problems = task.problems("test", 10, seed=0)
    assert all(task.score(p, task.guess(rng, p)).well_formed for p in problems for _ in range(5))


@pytest.mark.parametrize("name", USUAL)
@settings(max_examples=30, deadline=None)
@given(answer=st.one_of(st.text(), st.text(alphabet="0123456789-/.,= ABxyz", max_size=20)))
def test_any_answer_is_scored(name, answer):
    task = _usual(name)
    problem = task.problems("test", 1, seed=0)[0]
    score = task.score(problem, answer)
    assert score.error is None
    assert score.well_formed == (score.canonical is not None)
    assert score.well_formed or not score.correct


_MADE = {name: open_task(name, at="test") for name in USUAL}


def _usual(name):
    return _MADE[name]


@pytest.mark.parametrize("name", USUAL)
def test_neither_a_constant_nor_a_guess_goes_far(name):
    task, rng = _usual(name), random.Random(0)
    test = task.problems("test", 150, seed=0)
    train = task.problems("train", 150, seed=0)

    def solved(answer, problems):
        return fmean(task.score(p, answer).correct for p in problems)

    constants = list(task.constants())
    assert len(constants) > 3
    best = max(constants, key=lambda answer: solved(answer, train))
    constant, guess = BLIND[name]
    assert solved(best, test) <= constant
    assert fmean(task.score(p, task.guess(rng, p)).correct for p in test for _ in range(4)) <= guess


def test_a_program_of_other_steps_is_hardly_ever_right():
    try:
        task, rng = open_task(COSTLY, at="test"), random.Random(0)
    except UserError as why:
        pytest.skip(str(why))
    problems = task.problems("test", 40, seed=0)
    assert fmean(task.score(p, task.guess(rng, p)).correct for p in problems) < 0.03
    constants = list(itertools.islice(task.constants(), 3))
    assert all(fmean(task.score(p, c).correct for p in problems[:8]) < 0.05 for c in constants)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("arithmetic,min_terms=5", "max_terms=3"),
        ("arithmetic,operators=^", r"\+ - \* /"),
        ("linear,unknowns=2,max_denominator=3", "integers"),
        ("sequence,rules=steps", "did you mean 'step'"),
        ("sequence,rules=ratio,max_step=1", "at least 2"),
        ("graph,num_nodes=4,min_hops=4", "num_nodes=4"),
        ("hailstone,min_steps=9", "max_steps=8"),
        ("hailstone,max_start=10000", "max_value=9999"),
        ("grid,people=5,things=3", "up to two kinds"),
        ("sorting,min_items=9", "max_items"),
        ("strings,actions=revers", "did you mean 'reverse'"),
        ("units,quantities=weight", "one of"),
        ("calendar,first_year=2040", "last_year"),
        ("general,languages=en+fr", "one of"),
        ("safety,harmful_frac=2", "less than or equal to 1"),
        ("general,acts=thanks", "did you mean 'thank'"),
    ],
)
def test_settings_that_cannot_be_are_refused(word, told):
    with pytest.raises(UserError, match=told):
        open_task(word, at="--task")


def test_settings_that_leave_a_split_empty_are_refused_and_not_drawn_for_ever():
    task = open_task("arithmetic,max_terms=2,operators=/,max_digits=1", at="--task")
    assert len(task.problems("test", 2, seed=0)) == 2  # few, but some
    empty = open_task("graph,num_nodes=3,extra_edges=9,min_hops=2", at="--task")
    with pytest.raises(UserError, match="every split"):
        empty.draw(random.Random(0), "valid")
