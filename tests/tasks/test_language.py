import time
from pathlib import Path

from nalar.tasks.language import _WORDS, FUNCTION_WORDS, share_of

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


def test_long_texts_are_read_at_once():
    start = time.perf_counter()
    share_of("id", "yang dan " * 1_000_000)
    assert time.perf_counter() - start < 0.5
