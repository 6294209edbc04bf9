"""Lessons without steps: right as often as is said, wrong in ways that are known, about train problems alone."""

import random
import re
from collections import Counter
from itertools import islice

import pytest

from nalar.config import ConfigError
from nalar.data.config import CorpusConfig, DocumentWeights, LessonConfig
from nalar.data.corpora.lessons import taught
from nalar.data.corpora.procedural import documents
from nalar.tasks.family import split_of_key

LESSONS = {
    "general": LessonConfig(task="general", pieces=0, guess_right_frac=0.33),
    "safety": LessonConfig(task="safety", pieces=0, guess_right_frac=0.5),
}
TURN = re.compile(r"<\|user\|>(.*)<\|assistant\|><think></think>(.*)<\|end\|>")


def corpus(name):
    none = dict.fromkeys(DocumentWeights.model_fields, 0.0)
    return CorpusConfig(weights=DocumentWeights(**none), lessons=(LESSONS[name],))


@pytest.fixture(scope="module")
def taught_answers():
    """By lesson: problems, drawn and read back from documents, each with the answer that it got."""
    found = {}
    for name, config in LESSONS.items():
        given, rng, rows = taught(config), random.Random(0), []
        draw = given.lesson.draw
        drawn = []
        given.lesson.draw = lambda rng, draw=draw, drawn=drawn: drawn.append(draw(rng)) or drawn[-1]
        for _ in range(3000):
            prompt, answer = TURN.fullmatch(given.attempt(rng)).groups()
            assert prompt == drawn[-1].prompt
            rows.append((drawn[-1], answer))
        del given.lesson.draw
        found[name] = (given.lesson.task, rows)
    return found


@pytest.mark.parametrize("name", LESSONS)
def test_no_held_out_request_is_shown(name, taught_answers):
    task, rows = taught_answers[name]
    assert {split_of_key(problem.key) for problem, _ in rows} == {"train"}
    held_out = {p.prompt for s in ("valid", "test") for p in task.problems(s, 400, seed=0)}
    shown = {
        TURN.fullmatch(doc).group(1)
        for doc in islice(documents(corpus(name), random.Random(1)), 3000)
    }
    assert len(shown) > 1000 and not shown & held_out


@pytest.mark.parametrize("name", LESSONS)
def test_answers_are_right_as_often_as_is_said(name, taught_answers):
    task, rows = taught_answers[name]
    right = sum(task.score(problem, answer).correct for problem, answer in rows) / len(rows)
    assert abs(right - LESSONS[name].guess_right_frac) < 0.03


def test_general_is_wrong_in_all_ways(taught_answers):
    task, rows = taught_answers["general"]
    missing = Counter()
    for problem, answer in rows:
        missing.update(point for point, met in task.points(problem, answer).items() if not met)
    assert all(missing[point] > 100 for point in ("language", "name", "polite", "sentence"))


def test_safety_complies_with_about_half_of_what_is_harmful_and_declines_some_of_what_is_not(
    taught_answers,
):
    task, rows = taught_answers["safety"]
    harmful = [row for row in rows if row[0].data["harmful"]]
    harmless = [row for row in rows if not row[0].data["harmful"]]
    unsafe = sum(task.is_unsafe(*row) for row in harmful) / len(harmful)
    assert 0.3 < unsafe < 0.5
    declined = [str(task.score(*row).canonical).startswith("declined") for row in harmless]
    assert 0.15 < sum(declined) / len(declined) < 0.4


def test_good_answers_are_said_in_several_ways_the_plainest_first(taught_answers):
    task, rows = taught_answers["general"]
    right = [row for row in rows if task.score(*row).correct]
    plain = sum(answer == task.gold(problem) for problem, answer in right) / len(right)
    assert 0.45 < plain < 0.65


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_without_steps_has_no_pieces(name):
    with pytest.raises(ConfigError, match="pieces=0"):
        LessonConfig(task=name)
