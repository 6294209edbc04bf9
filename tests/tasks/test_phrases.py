import pytest

from nalar.tasks.phrases import (
    cut,
    either_mark,
    expanded,
    holds,
    is_one_sentence,
    is_plain,
    says_once,
    vocabulary,
    words_of,
)


def test_a_pattern_is_all_its_choices_the_first_ones_first():
    assert expanded("a[| b] c[d|e]") == ["a cd", "a ce", "a b cd", "a b ce"]
    assert expanded("plain {slot}") == ["plain {slot}"]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("Thank you, Ana.", True),
        ("May I?", True),
        ("Ana's cat is black!", True),
        ("thank you, Ana.", False),
        ("Thank you, Ana", False),
        ("Thank you. Ana.", False),
        ("Thank you, Ana..", False),
        ("Thank you,\nAna.", False),
        ("Thank you, Ana\u200b.", False),
        ("Terima kasih, Ana。", False),
        (".", False),
        ("X.", False),
        ("", False),
        ("Ha " * 100 + ".", False),
    ],
)
def test_one_sentence_goes_from_a_capital_to_its_only_mark(text, is_one):
    assert is_one_sentence(text) == is_one


def test_a_plain_answer_has_a_word_and_no_control():
    assert is_plain("go") and not is_plain("12 + 3") and not is_plain("go\x7f")
    assert not is_plain("g" * 201)


@pytest.mark.parametrize(
    ("text", "once"),
    [
        ("hold the book to the light", True),  # one word twice, apart
        ("thanks thanks for the tea", False),
        ("thank you for thank you", False),
        ("one two three four five six", False),  # more than five words
    ],
)
def test_nothing_is_said_twice(text, once):
    assert says_once(words_of(text), 5 if "six" in text else 12) == once


def test_words_of_a_phrase_stand_together():
    words = words_of("Dear Ana, I can't help you with that.")
    assert holds(words, "can't help") and holds(words, "Dear Ana")
    assert not holds(words, "help with") and not holds(words, "can")


def test_what_breaks_off_has_no_mark_and_lacks_a_word():
    for keep in (0.0, 0.3, 0.9, 1.0):
        short = cut("Many thanks, Ana, for the tea.", keep)
        assert 1 <= len(short.split()) < 6 and short[-1].isalpha()


def test_marks_and_words_of_patterns():
    assert list(either_mark(["Go.", "Go?"])) == ["Go.", "Go!", "Go?"]
    assert vocabulary(["[Hi|Hai] {name}, kue."], "id") >= {"hi", "hai", "kue", "kuenya"}
    assert "name" not in vocabulary(["{name}"], "en")
