"""Thoughts in words: every small word tells a language, and rewording changes nothing else."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalar.config import ConfigError
from nalar.data.config import LessonConfig
from nalar.data.corpora.lessons import taught
from nalar.data.corpora.wording import EQUALS, JOINTS, drawn_languages, reworded, worded
from nalar.tasks.language import (
    FUNCTION_WORDS,
    LANGUAGES,
    is_readable,
    says_language,
    share_of,
)

STEPS = ["3-2=1", "-4-5=-9", "-9/1=-9"]
ENGLISH = "3-2 is 1, so -4-5 is -9, then -9/1 is -9"
INDONESIAN = "3-2 jadi 1, maka -4-5 jadi -9, lalu -9/1 jadi -9"
LESSONS = {
    "linear": LessonConfig(task="linear,max_coefficient=5,max_solution=9", wording="words"),
    "sums": LessonConfig(
        task="arithmetic,max_terms=2,min_digits=2,max_digits=3,operators=+", wording="words"
    ),
}
TURN = re.compile(r"<\|user\|>(.*)<\|assistant\|><think>(.*)</think>(.*)<\|end\|>")


def thoughts(name, n=400, **changes):
    """Of attempts that are worked through."""
    config = LESSONS[name].model_copy(update={"blurt_frac": 0.0, "partial_frac": 0.0} | changes)
    rng = random.Random(0)
    return [TURN.fullmatch(taught(config).attempt(rng)).group(2) for _ in range(n)]


def test_every_small_word_is_a_word_of_its_language_alone():
    for pair in (EQUALS, *JOINTS):
        assert {FUNCTION_WORDS[word]: word for word in pair.values()} == dict(pair)


def test_steps_are_joined_in_the_language_of_each():
    assert worded(STEPS, ["en"] * 3) == ENGLISH
    assert worded(STEPS, ["id"] * 3) == INDONESIAN
    mixed = worded(STEPS, ["id", "en", "id"])
    assert mixed == "3-2 jadi 1, so -4-5 is -9, lalu -9/1 jadi -9"
    assert worded(["7+5=12:2"], ["en"]) == "7+5 is 12:2"
    assert worded(["1"] * 6, ["en"] * 6) == "1, so 1, then 1, and 1, so 1, then 1"


def test_rewording_makes_one_language_of_two_and_back():
    for languages in (["en", "id", "en"], ["id", "id", "en"], ["en"] * 3, ["id"] * 3):
        thought = worded(STEPS, languages)
        assert reworded(thought, "en") == ENGLISH
        assert reworded(thought, "id") == INDONESIAN


@pytest.mark.parametrize("name", LESSONS)
def test_what_is_taught_can_be_reworded_and_then_read(name):
    for thought in [*thoughts(name), *thoughts(name, slip_frac=0.3)]:
        assert says_language(thought)
        for language in LANGUAGES:
            again = reworded(thought, language)
            assert share_of(language, again) == 1.0 and is_readable(again, language)
            assert re.findall(r"[-+/:\d]+", again) == re.findall(r"[-+/:\d]+", thought)
            assert reworded(again, language) == again


@pytest.mark.parametrize("name", LESSONS)
def test_a_thought_mixes_languages_about_as_often_as_not(name):
    found = thoughts(name, 1500)
    mixed = sum(not is_readable(thought) for thought in found) / len(found)
    assert 0.3 < mixed < 0.6
    english = sum(share_of("en", thought) > 0.5 for thought in found) / len(found)
    assert 0.42 < english < 0.58


@pytest.mark.parametrize(
    "thought",
    [
        "",
        "I think it is 4",
        "3-2 is 1, so",
        "3-2 is 1 so -4-5 is -9",
        "so 3-2 is 1",
        "3-2 is is 1",
        "3-2 sama dengan 1",
        "3-2 is 1\n",
        "3-2 is 1, so, then 4 is 4",
        "٣-2 is 1",
        "3-2 is 1, " * 2000 + "4",
        "issothen",
    ],
)
def test_what_is_not_steps_cannot_be_reworded(thought):
    assert reworded(thought, "id") is None


def test_a_bare_calculation_stays_as_it_is():
    for thought in ("3-2=1,-4-5=-9", "7+5=12:2,4+8+1=13:32", "42"):
        assert reworded(thought, "id") == reworded(thought, "en") == thought


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789-+=, isojadmklun:thenlu", max_size=80))
def test_any_text_is_read_or_refused(thought):
    for language in LANGUAGES:
        again = reworded(thought, language)
        assert again is None or reworded(again, language) == again


def test_long_texts_that_nearly_are_steps_are_refused_at_once():
    assert reworded("1+" * 1999 + "?", "en") is None
    assert reworded("1, so " * 600 + "?", "en") is None


def test_languages_are_drawn_for_each_step():
    rng = random.Random(0)
    drawn = [tuple(drawn_languages(rng, 3)) for _ in range(4000)]
    assert len(set(drawn)) == 8
    assert abs(sum(len(set(one)) == 1 for one in drawn) / 4000 - 0.49) < 0.03
    assert drawn_languages(rng, 0) == []


def test_pieces_and_unfinished_attempts_are_in_words_too():
    rng, lesson = random.Random(0), taught(LESSONS["linear"])
    assert all(re.search(r" (is|jadi) ", lesson.pieces(rng)) for _ in range(50))
    partial = thoughts("linear", 50, partial_frac=1.0)
    assert all("=" not in thought and thought for thought in partial)


def test_only_calculations_are_put_in_words():
    for task in ("sorting,min_items=5,max_items=5", "general"):
        with pytest.raises(ConfigError, match="wording"):
            LessonConfig(task=task, wording="words", pieces=0)
