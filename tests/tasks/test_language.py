import time
from pathlib import Path

import pytest

from nalar.tasks.language import (
    _WORDS,
    FUNCTION_WORDS,
    is_readable,
    language_of,
    loops,
    says_language,
    share_of,
)

ROOT = Path(__file__).parents[2]
ENGLISH = "We know that there are three boxes, and each of them has the same number of eggs, so we multiply."
INDONESIAN = "Kita tahu bahwa ada tiga kotak, dan setiap kotak berisi telur yang sama, jadi kita kalikan saja."


def test_no_word_is_of_two_languages():
    assert len(FUNCTION_WORDS) == len({w for ws in _WORDS.values() for w in ws.split()})
    assert sum(len(set(ws.split())) for ws in _WORDS.values()) == len(FUNCTION_WORDS)


def test_sentences_are_of_their_own_language():
    assert share_of("en", ENGLISH) == share_of("id", INDONESIAN) == 1.0
    assert share_of("id", ENGLISH) == share_of("en", INDONESIAN) == 0.0


def test_pages_of_this_project_are_told_apart():
    pages = {"en": ROOT / "README.md", "id": ROOT / "README.id.md"}
    for language, path in pages.items():
        paragraphs = [p for p in path.read_text().split("\n\n") if len(p) > 300 and "|" not in p]
        assert len(paragraphs) >= 3
        shares = [share_of(language, p) for p in paragraphs if "```" not in p]
        assert min(shares) > 0.7 and sum(shares) / len(shares) > 0.9


def test_mixing_shows():
    mixed = f"{ENGLISH} {INDONESIAN}"
    assert 0.2 < share_of("en", mixed) < 0.8
    assert share_of("en", mixed) + share_of("id", mixed) == 1.0
    assert share_of("id", INDONESIAN + " 我们知道有三个盒子每个盒子里有一样多的鸡蛋所以相乘") < 0.7


def test_bare_calculations_say_nothing():
    for text in ("", "8-3=5,5*9=45✓", "x = 3", "and so"):
        assert share_of("id", text) == share_of("en", text) == 1.0


def test_repeating_one_word_buys_little():
    spam = ENGLISH + " yang" * 500
    assert share_of("id", spam) < 0.25


def test_the_language_of_a_text_is_the_one_of_more_of_its_words():
    assert language_of(ENGLISH) == "en" and language_of(INDONESIAN) == "id"
    assert language_of(f"{INDONESIAN} {INDONESIAN} and so then") == "id"
    assert language_of("8-3=5") == "en", "nothing tells"


def test_a_text_says_its_language_by_three_small_words():
    assert says_language("3 is 3, so 4 is 4") and says_language(INDONESIAN)
    assert not says_language("3 is 3, so 4") and not says_language("8-3=5,5*9=45")


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        (ENGLISH, True),
        (INDONESIAN, True),
        (f"{ENGLISH} {INDONESIAN}", False),
        ("3-2 is 1, so 4 is 4, lalu 5 is 5", False),
        ("3-2 is 1, maka 4", True),  # two small words tell nothing
        ("8-3=5,5*9=45\u2713", True),
        ("", True),
        (ENGLISH + " \u6211\u4eec", False),
        (ENGLISH + " \u043d\u0435\u0442", False),
        ("the angle \u03b1 is 3, so \u0394 is 9", True),
        ("caf\u00e9", True),
        ("12\ufffd", False),
        (ENGLISH + " so it is so," * 5, False),
        (ENGLISH + "!" * 16, False),
    ],
)
def test_readable_is_one_language_no_other_script_and_no_loop(text, readable):
    assert is_readable(text) == readable


def test_a_thought_may_have_to_be_in_one_language():
    assert is_readable(ENGLISH, "en") and not is_readable(ENGLISH, "id")
    assert is_readable("8-3=5", "id") and is_readable("8-3=5", "en")


def test_a_loop_is_what_stands_four_times_at_the_end():
    assert loops("it is 12, " * 4) and not loops("it is 12, " * 3 + "done")
    assert not loops("it is 12, " * 3) and loops("x" + "ab" * 8)
    assert not loops("0" * 15) and loops("0" * 16) and not loops("")
    assert loops("a" * 5 + "b" * 80 * 4) and not loops(
        ("".join(map(chr, range(97, 178))) + "1") * 4
    )


def test_long_texts_are_read_at_once():
    start = time.perf_counter()
    share_of("id", "yang dan " * 1_000_000)
    is_readable("yang dan " * 1_000_000)
    assert time.perf_counter() - start < 0.5
