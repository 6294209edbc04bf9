from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalar.tasks.answers import (
    number_score,
    numbers_score,
    plain_decimal,
    read_number,
    words_score,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("−7", -7),
        (" 007 ", 7),
        ("2.50", Fraction(5, 2)),
        ("-0.5", Fraction(-1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("9" * 60, int("9" * 60)),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "+7", "7.", ".5", "6/4", "12/4", "4/1", "1/0", "0/0", "1e3", "1,000", "1 000", "٣", "３"]
    + ["7 8", "7\n8", "--7", "- 7", "0x7", "1/2/3", "1.5/2", "9" * 61, "nan", "½", "50%", "$5"],
)
def test_all_else_is_no_number(text):
    assert read_number(text) is None
    assert not number_score(text, 7).well_formed


@settings(deadline=None)
@given(st.fractions(max_denominator=10**6))
def test_what_is_written_is_read_back(value):
    assert read_number(str(value)) == value
    assert read_number(plain_decimal(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [("1/2", "0.5"), ("-1/8", "-0.125"), ("40", "40"), ("1/3", "1/3"), ("-7/200", "-0.035")],
)
def test_decimals_are_written_without_an_exponent(value, text):
    assert plain_decimal(Fraction(value)) == text


def test_several_numbers_stand_in_order_with_or_without_their_names():
    gold, names = [Fraction(2), Fraction(-3, 2)], ("x", "y")
    for text in ("2, -3/2", "x=2, y=-1.5", " x = 2,y = -3/2 ", "2,y=-1.5"):
        assert numbers_score(text, gold, names).correct
        assert numbers_score(text, gold, names).canonical == "2, -3/2"
    for text in (
        "-3/2, 2",
        "y=-3/2, x=2",
        "2",
        "2, -3/2, 0",
        "2 -3/2",
        "x==2, -3/2",
        "2,",
        ",",
        "",
    ):
        assert not numbers_score(text, gold, names).correct


def test_words_are_compared_one_by_one():
    assert words_score("a, b  c", ["a", "b", "c"]).correct
    assert words_score("a b c", ["a", "b", "c"]).canonical == "a b c"
    for text in ("a b", "a b c d", "a c b", "A b c", ""):
        assert not words_score(text, ["a", "b", "c"]).correct
