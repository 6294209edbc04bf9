"""Lessons: over train problems only, as bad as stated, and right where nothing slips."""

import hashlib
import random
import re
from itertools import islice

import pytest

from nalar.config import ConfigError
from nalar.data.config import LESSONS, CorpusConfig, DocumentWeights, LessonConfig
from nalar.data.corpora.equations import side
from nalar.data.corpora.lessons import MAKERS, taught
from nalar.data.corpora.procedural import documents
from nalar.data.template import END
from nalar.recipes.ladder import RUNGS, ladder
from nalar.recipes.zero import zero_cpu
from nalar.sandbox import expression
from nalar.tasks.family import split_of_key
from nalar.tasks.linear import lowest_terms
from nalar.tasks.programs import LAST, MIDDLE

TURN = re.compile(r"<\|user\|>(.*)<\|assistant\|><think>(.*)</think>(.*)<\|end\|>", re.DOTALL)
WORD = re.compile(r"\b[a-h]{5,7}\b")


def only(lesson: LessonConfig) -> CorpusConfig:
    none = DocumentWeights.model_fields
    return CorpusConfig(weights=DocumentWeights(**dict.fromkeys(none, 0.0)), lessons=(lesson,))


def sample(lesson: LessonConfig, n: int, seed: int = 0) -> list[str]:
    return list(islice(documents(only(lesson), random.Random(seed)), n))


def keys_of_sums(doc: str) -> list[str]:
    """Sums of two numbers of two digits or more, asked for or worked out."""
    pairs = re.findall(r"(?<!\d)(\d\d+\+\d\d+)(?!\d)", doc)
    return [f"arithmetic:{expression.parse(pair).canonical}" for pair in pairs]


def keys_of_equations(doc: str) -> list[str]:
    found = []
    for left, right in re.findall(r"([-+x\d]*)=([-+x\d]*)", doc):
        if "x" in left + right:
            (a, b), (c, d) = side(left), side(right)
            row = min(lowest_terms([a, b, c, d]), lowest_terms([c, d, a, b]))
            found.append(f"linear:{' '.join(map(str, row))}")
    return found


def keys_of_sequences(doc: str) -> list[str]:
    return [f"sequence:{shown}" for shown in re.findall(r"(?:-?\d+, ){5}-?\d+", doc)]


def keys_of_sorted(doc: str) -> list[str]:
    lists = re.findall(r"(?<![\d ])\d+(?: \d+){4}(?![\d ])", doc.replace(": ", ":"))
    return [f"sorting:{' '.join(sorted(items.split(), key=int))}" for items in lists]


def keys_of_words(doc: str) -> list[str]:
    return [f"strings:{min(word, word[::-1])}" for word in WORD.findall(doc)]


STEPS = {
    step.code.format(k=k): f"{name}{k if '{k}' in step.words else ''}"
    for name, step in MIDDLE.items()
    for k in range(2, 6)
}
ENDS = {step.code: name for name, step in LAST.items()}
WORDS = {
    step.words.format(k=k): f"{name}{k if '{k}' in step.words else ''}"
    for name, step in {**MIDDLE, **LAST}.items()
    for k in range(2, 6)
}


def keys_of_programs(doc: str) -> list[str]:
    """Pipelines that are asked for, and those that are written, whoever asked for them."""
    found = []
    for asked in re.findall(r"integers\. First (.*)\.<", doc):
        parts = re.split(r", (?:and )?then ", asked)
        # `or 0 where there is none` follows a comma too, but no `then`
        found.append(" ".join(WORDS[part] for part in parts))
    for program in re.findall(r"def f\(xs\):\n(.*)<\|end", doc, re.DOTALL):
        *middle, last = program.split("\n")
        names = [STEPS[line.strip().removeprefix("xs = ")] for line in middle]
        found.append(" ".join([*names, ENDS[last.strip().removeprefix("return ")]]))
    return [f"programs:{key}" for key in found]


KEYS = {
    "sums": keys_of_sums,
    "linear": keys_of_equations,
    "sequence": keys_of_sequences,
    "sorting": keys_of_sorted,
    "strings": keys_of_words,
    "programs": keys_of_programs,
}


@pytest.mark.parametrize("rung", RUNGS)
def test_no_held_out_problem_occurs(rung):
    found = [key for doc in sample(RUNGS[rung], 4_000) for key in KEYS[rung](doc)]
    assert len(found) > 3_000
    assert {split_of_key(key) for key in found} == {"train"}


@pytest.mark.parametrize("rung", RUNGS)
def test_the_scan_would_find_a_held_out_problem(rung):
    task = taught(RUNGS[rung]).lesson.task
    for problem in task.problems("test", 50, seed=0):
        doc = f"<|user|>{problem.prompt}<|assistant|><think></think>{task.gold(problem).strip()}<|end|>"
        assert problem.key.partition("|")[0] in KEYS[rung](doc)


@pytest.mark.parametrize("rung", RUNGS)
def test_work_without_slips_ends_at_the_answer(rung):
    lesson, rng = taught(RUNGS[rung]).lesson, random.Random(1)
    for _ in range(300):
        problem = lesson.draw(rng)
        steps, answer = lesson.work(rng, problem, 0.0)
        assert len(steps) >= 2
        assert answer.strip() == lesson.task.gold(problem).strip()


@pytest.mark.parametrize("rung", RUNGS)
def test_attempts_are_as_bad_as_stated(rung, monkeypatch):
    given, rng, n = taught(RUNGS[rung]), random.Random(0), 3_000
    lesson, config = given
    draw, drawn = lesson.draw, []
    monkeypatch.setattr(lesson, "draw", lambda rng: drawn.append(draw(rng)) or drawn[-1])
    blurted = blurted_right = worked = worked_right = 0
    for _ in range(n):
        drawn.clear()
        found = TURN.fullmatch(given.attempt(rng))
        problem = drawn[0]  # what is drawn later is for a guess
        assert found and found.group(1) == problem.prompt
        _, thought, answer = found.groups()
        is_right = answer == lesson.task.gold(problem).strip()
        if not thought:
            blurted += 1
            blurted_right += is_right
        elif thought.count(",") + 1 == len(lesson.work(rng, problem, 0.0)[0]):
            worked += 1
            worked_right += is_right
    assert abs(blurted / n - config.blurt_frac) < 0.03
    assert abs(worked / n - (1 - config.blurt_frac - config.partial_frac)) < 0.03
    # a guess may be right by itself, seldom
    assert -0.04 < blurted_right / blurted - config.guess_right_frac < 0.08
    assert 0.8 < worked_right / worked < 1


def test_the_same_seed_gives_the_same_documents():
    corpus = ladder("all", *RUNGS, vocab_size=320, max_tokens=64).corpus
    first, again, other = (
        list(islice(documents(corpus, random.Random(seed)), 200)) for seed in (3, 3, 4)
    )
    assert first == again != other
    assert all(doc.endswith(END) and doc.count(END) == 1 for doc in first)


def test_shares_are_of_documents():
    docs = sample(RUNGS["linear"], 3_000)
    dialogues = sum(doc.startswith("<|user|>Solve") for doc in docs)
    assert abs(dialogues / 3_000 - 0.8) < 0.03
    assert not any("x" in doc for doc in docs if not doc.startswith("<|user|>"))


def test_the_demo_reads_what_it_always_read():
    texts = islice(documents(zero_cpu().corpus, random.Random(5)), 5_000)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    assert digest.startswith("94fb12a089fe8f19")


def test_every_lesson_has_a_maker():
    assert set(MAKERS) == set(LESSONS)


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ("arithmetic", "operators"),
        ("linear,unknowns=2", "unknown"),
        ("sequence", "rules"),
        ("sorting", "min_items"),
        ("strings", "actions"),
    ],
)
def test_settings_that_a_lesson_cannot_work_through_are_refused(task, field):
    with pytest.raises(ConfigError, match=field):
        next(documents(only(LessonConfig(task=task)), random.Random(0)))


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"task": "calendar"}, "corpus.lessons"),
        ({"task": "linear,max_solutions=3"}, "max_solution"),
        ({"task": "linear", "blurt_frac": 0.8, "partial_frac": 0.3}, "blurt_frac"),
    ],
)
def test_lessons_that_cannot_be_are_refused(fields, at):
    with pytest.raises(Exception, match=at):
        LessonConfig(**fields)


def test_a_task_is_taught_once():
    with pytest.raises(ConfigError, match="once"):
        CorpusConfig(lessons=(RUNGS["linear"], RUNGS["linear"]))
