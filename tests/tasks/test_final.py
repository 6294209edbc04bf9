import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalar.tasks.final import boxed, final_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("18", "18"),
        (" 18.\n", "18"),
        ("The answer is 18.", "18"),
        ("Answer: 1,080", "1,080"),
        ("Jawabannya adalah 18.", "18"),
        ("So we sell 9 eggs.\n#### 18", "18"),
        ("Hence $\\boxed{\\frac{3}{4}}$.", "\\frac{3}{4}"),
        ("\\boxed{ x^{2} }, that is \\boxed{x^{2}}", "x^{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\fbox{7}", "7"),
        ("$12$", "12"),
        ("\\(12\\)", "12"),
        ("\\boxed{$12$}", "12"),
    ],
)
def test_the_final_answer_is_found(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "\\boxed{}",
        "\\boxed{41} wait \\boxed{42}",
        "18 \\boxed{",
        "\\boxed{1}\\boxed{2",
        "#### 17\n#### 18",
        "#### 18 #### 19",
        "#### 18\nor 19",
        "first 17\nthen 18",
        "1" * 501,
        "18" + " " * 1_000_000 + "x",
    ],
)
def test_no_answer_and_more_than_one_are_none(text):
    assert final_answer(text) is None


def test_boxes_are_taken_from_the_outermost():
    assert boxed("a \\boxed{b \\boxed{c}} d \\boxed{e}") == ["b \\boxed{c}", "e"]
    assert boxed("none") == []


@settings(deadline=None)
@given(st.text(alphabet="\\boxed{}$#. 1\n"))
def test_any_text_is_read(text):
    found = final_answer(text)
    assert found is None or found == found.strip() != ""


def test_long_texts_are_read_at_once():
    start = time.perf_counter()
    for piece in ("\\boxed{1} ", "{", "\\boxed", "\\boxed{", "$", "####", "answer ", " "):
        final_answer(piece * 100_000)
        final_answer((piece * 20_000)[:20_000])
    assert time.perf_counter() - start < 1
