import pytest
from hypothesis import given
from hypothesis import strategies as st

from nalar.tasks.traces import checks_itself, is_hit, marked_tries

DATA = {"numbers": [3, 8, 9], "target": 24}

thoughts = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.sampled_from(
            [
                "8-3=5",
                ",",
                "5*9=45",
                "✗",
                "✓",
                " yes",
                " no",
                "\n",
                " ",
                "9-3=6,6*4=24",
                "(",
                "=",
                "-",
                "9/3=3",
            ]
            + ["99999999", "٣+١=٤", "1/0=0", "²+1=3", "\x00", "-1--1=0"]
        ),
        max_size=30,
    ).map("".join),
)


def test_tries_are_read_in_order_with_their_marks():
    tries = marked_tries("8-3=5,5*9=45✗\n9-3=6,6*8=48✗\n9-8=1,1+3=4✓")
    assert [t.text for t in tries] == ["8-3=5,5*9=45", "9-3=6,6*8=48", "9-8=1,1+3=4"]
    assert [t.value for t in tries] == [45, 48, 4]
    assert [t.marked_hit for t in tries] == [False, False, True]


@pytest.mark.parametrize(
    ("thought", "values", "marks"),
    [
        ("8 - 3 = 5, 5 * 9 = 45 no 9-3=6 yes", [45, 6], [False, True]),  # spaced, words, one line
        ("9-3=6no", [6], [False]),
        ("garble✗", [None], [False]),
        ("9-3=6", [], []),  # never judged
        ("", [], []),
        ("nothing is known, yesterday", [], []),  # words that only contain a verdict
    ],
)
def test_messy_marks_are_read_too(thought, values, marks):
    tries = marked_tries(thought)
    assert [t.value for t in tries] == values
    assert [t.marked_hit for t in tries] == marks


@pytest.mark.parametrize(
    ("thought", "checks"),
    [
        ("8-3=5,5*9=45✗\n9-3=6,6*4=24✓", True),
        ("8-3=5,5*9=45✗\n9-3=6✗", True),
        ("8-3=5,5*9=45✗\n9-3=6,6*", True),  # the next try was cut before its mark
        ("8-3=5,5*9=45 no 9-3=6 yes", True),
        ("8-3=5,5*9=45✗", False),  # nothing follows
        ("8-3=5,5*9=45✗\nso the answer is", False),  # no try follows
        ("8-3=5,5*9=45✗✗✗", False),  # marks alone are no tries
        ("✗\n8-3=5", False),  # nothing was tried before the mark
        ("9-3=6✓\n8-3=5✓", False),  # nothing was marked wrong
        ("9-3=6✓\n8-3=5✗", False),
        ("", False),
    ],
)
def test_a_self_check_is_a_try_marked_wrong_and_another_after_it(thought, checks):
    assert checks_itself(thought) is checks


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("9-8=1,1*3=3", False),  # another value
        ("9-3=6,6*8=48", False),
        ("8*3=24", False),  # leaves the 9
        ("8*3=24,24*9=216", False),
        ("9/3=3,3*8=24", True),
        ("9/3=3, 3 * 8 = 24", True),
        ("8*9=72,72/3=24", True),
        ("8/3=2,2*9=18", False),  # does not divide
        ("9/0=9", False),
        ("9/3=3,8*3=23", False),  # a slip
        ("9-3=6,6+9=15", False),  # the 9 twice
        ("12+12=24", False),  # numbers that were not given
        ("99/3=3,3*8=24", False),
        ("12349/3=3,3*8=24", False),  # a number is read whole
        ("", False),
        ("24", False),
    ],
)
def test_a_hit_uses_each_number_once_without_a_slip_and_ends_on_the_target(text, hit):
    assert is_hit(text, DATA) is hit


def test_equal_numbers_are_used_as_often_as_given():
    data = {"numbers": [4, 4, 4], "target": 12}
    assert is_hit("4+4=8,8+4=12", data)
    assert not is_hit("4+4=8,8+4=12", data | {"numbers": [4, 4, 8]})


@given(thoughts)
def test_no_thought_makes_the_readers_raise(thought):
    tries = marked_tries(thought)
    assert isinstance(checks_itself(thought), bool)
    for attempt in tries:
        assert attempt.text == attempt.text.strip()
        is_hit(attempt.text, DATA)
    is_hit(thought, DATA)


@given(thoughts)
def test_a_self_check_needs_a_mark_and_two_steps(thought):
    if checks_itself(thought):
        assert any(not t.marked_hit for t in marked_tries(thought))
        assert thought.count("=") >= 2
