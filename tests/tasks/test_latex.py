import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalar.sandbox.worker import WorkerError
from nalar.tasks import latex
from nalar.tasks.latex import Judge, canonical, is_bounded, quantity


class Refusing:
    """In the place of the worker: no answer here may need one."""

    def ask(self, request, *, timeout_s):
        raise AssertionError(f"asked for {request}")


@pytest.fixture
def strict():
    judge = Judge()
    judge._worker = Refusing()
    return judge


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("1,080", 1080, ""),
        ("10,\\!080", 10080, ""),
        ("11,\\! 111,\\! 100", 11111100, ""),
        ("\\$32,\\!348", 32348, ""),
        ("$18", 18, ""),
        (".0000672", Fraction(672, 10**7), ""),
        ("-\\frac{3}{8}", Fraction(-3, 8), ""),
        ("\\frac{-3}{8}", Fraction(-3, 8), ""),
        ("\\dfrac{17}{50}", Fraction(17, 50), ""),
        ("\\frac43", Fraction(4, 3), ""),
        ("\\frac 59", Fraction(5, 9), ""),
        ("x=5", 5, ""),
        ("90^\\circ", 90, "^\\circ"),
        ("50\\%", 50, "\\%"),
        ("5.4 \\text{ cents}", Fraction(27, 5), "cents"),
    ],
)
def test_numbers_of_mathematics_are_read_exactly(text, value, unit):
    assert quantity(text) == (value, unit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\\frac{6}{4}",
        "12/4",
        "5 1/2",
        "1 2",
        "1\n2",
        "5~1/2",
        "-5\\ 1/2",
        "1+2",
        "2^3",
        "5,7",
        "1,00",
        "1 or 2",
        "1\\,000x",
        "\\pi",
        "52_8",
    ]
    + ["٣", "1e5", "xy=5", "9" * 70, "\\frac{1}{0}", "--\\frac12", "5 dollars", "\\text{five}"],
)
def test_what_is_no_number_is_not_read_as_one(text):
    assert quantity(text) is None


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("18", ["18", "18.0", "x=18", "\\$18", "18\\%", "18^\\circ"], ["36/2", "9+9", "18, 19"]),
        ("1,080", ["1080", "1,080"], ["1,08", "108"]),
        ("50\\%", ["50", "50\\%"], ["0.5", "50^\\circ"]),
        ("\\frac{3}{4}", ["0.75", "3/4", "\\tfrac34"], ["6/8", "0.7500001", "75\\%"]),
        ("0", ["0", "-0"], ["3x-y+13=0", "\\frac{0}{5}", ""]),
        ("5.4 \\text{ cents}", ["5.4", "5.4\\text{ cents}"], ["5.4\\text{ million}"]),
    ],
)
def test_a_gold_number_wants_a_number_and_no_calculation(strict, gold, right, wrong):
    for answer in right:
        assert strict.score(gold, answer).correct
    for answer in wrong:
        assert not strict.score(gold, answer).correct


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\text{Evelyn}", "evelyn"),
        ("\\text{(C)}", "(C)"),
        ("x^5 - x^4", "x^5-x^4"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\dfrac{\\pi}{2})"),
        ("4210_{5}", "4210_5"),
    ],
)
def test_the_same_writing_needs_no_mathematics(strict, gold, answer):
    score = strict.score(gold, answer)
    assert score.correct and score.canonical == strict.score(gold, gold).canonical


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("52_8", "52"),
        ("\\sqrt{2}", "1.414214"),
        ("3\\sqrt{13}", "10.816653826391969"),
        ("52_8", "42"),
        ("1,-2", "1"),
        ("1,-2", "1,-2,3"),
        ("\\text{east}", "west"),
        ("\\text{(C)}", "(D)"),
        ("y=2x+3", "2x+3"),
        ("(3,4]", "(3,4)"),
        ("1 \\pm \\sqrt{19}", "1+\\sqrt{19}"),
        ("(0,9) \\cup (9,36)", "(0,36)"),
    ],
)
def test_what_mathematics_would_overlook_is_wrong_without_it(strict, gold, answer):
    score = strict.score(gold, answer)
    assert not score.correct and score.error is None


@pytest.mark.parametrize(
    "text",
    [
        "2003^(2002^2001)",
        "10^{10^{10}}",
        "9^9^9^9",
        "((9^{99})^{99})^{99}",
        "2^{99999}",
        "2^{999*999}",
        "100!",
        "\\sum_{n=1}^{9} n",
        "\\prod x",
        "\\int x",
        "9" * 41,
        "(" * 13 + ")" * 13,
        "π",
        "\\binom{9}{3}",
        "\\input{x}",
        "x^",
    ],
)
def test_what_is_long_to_work_out_is_refused_before_it_is_read(strict, text):
    assert not is_bounded(text)
    score = strict.score("\\sqrt{2}", text)
    assert not score.well_formed and score.error is None


@pytest.mark.parametrize("text", ["x^2+y^2", "(x^2+1)^3", "2^{100}", "\\sqrt[3]{x^{12}}", "x_1^2"])
def test_plain_mathematics_is_let_through(text):
    assert is_bounded(text)


@settings(deadline=None)
@given(st.text(alphabet="\\frac{}^_0123456789+-x=,. \\text", max_size=60))
def test_any_writing_is_read(text):
    canonical(text)
    quantity(text)
    is_bounded(text)


def test_a_verifier_that_fails_is_an_error_and_not_a_wrong_answer():
    judge = Judge()
    for raised, timed_out in ((WorkerError("no answer", timed_out=True), True), (None, False)):

        class Failing:
            def ask(self, request, *, timeout_s, raised=raised):
                if raised:
                    raise raised
                return {"error": "ValueError"}

        judge._worker = Failing()
        score = judge.score("\\sqrt{2}", "\\sqrt{3}")
        assert score.error and score.timed_out == timed_out and not score.correct


@pytest.fixture(scope="module")
def judge():
    pytest.importorskip("math_verify", reason="needs the extra nalar[math]")
    made = Judge()
    made.refuse_without_package()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("3\\sqrt{13}", ["\\sqrt{117}", "\\sqrt{13}*3"], ["\\sqrt{13}", "10.8"]),
        ("6 - 5i", ["-5i+6"], ["6+5i"]),
        ("(a+5)(b+2)", ["(b+2)(a+5)", "ab+2a+5b+10"], ["ab+10"]),
        ("2k+2", ["2(k+1)"], ["2k+1", "k+2"]),
        ("1,-2", ["-2,1"], ["1,2"]),
        ("\\frac{\\sqrt{3}}{3}", ["\\frac{1}{\\sqrt{3}}"], ["\\sqrt{3}"]),
        ("5x - 7y + 11z + 4 = 0", ["11z+5x-7y+4=0"], ["5x-7y+11z+5=0", "0=1"]),
    ],
)
def test_mathematics_that_is_written_otherwise_is_compared(judge, gold, right, wrong):
    for answer in right:
        assert judge.score(gold, answer).correct, answer
    for answer in wrong:
        score = judge.score(gold, answer)
        assert not score.correct and score.error is None, answer


TWO_IN_ONE = [
    "{w}$ ${g}", "{g}$ ${w}", "{w}\\approx {g}", "{g}\\approx {w}", "{w}\\equiv {g}", "{g}\\equiv {w}",
    "{g} \\text{{ not }}", "{g}\\text{{ or }}{w}", "\\boxed{{{g}}} {w}", "{g}:{w}", "{w};{g}", "{w} \\lor {g}",
    "{w}\\phantom{{{g}}}", "{w}\\to {g}", "{g}\\neq {w}", "{w}|{g}", "{g}\\hbox{{x}}", "{w} \\& {g}", "{g}?",
    "{g}\\text{{$ {w} $}}", "\\color{{{w}}}{g}", "{w}\\\\{g}", "{g}#{w}", "{g}@{w}", "{g}\\cdots",
]  # fmt: skip


@pytest.mark.parametrize("form", TWO_IN_ONE)
@pytest.mark.parametrize(
    "gold", ["\\sqrt{2}", "x^2+1", "(1,2)", "y=2x+3", "\\infty", "2\\pi", "x<3", "3\\text{ or }4"]
)
def test_two_answers_in_one_are_wrong_and_nobody_is_asked(strict, gold, form):
    score = strict.score(gold, form.format(g=gold, w="\\sqrt{3}"))
    assert not score.correct and score.error is None


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("x \\leq 3", "x \\le 3"),
        ("5\\sqrt{2} \\text{ cm}", "5\\sqrt{2}"),
        ("n \\equiv 3", "n\\equiv 3"),
        ("3\\text{ or }4", "3 \\text{ or } 4"),
    ],
)
def test_what_a_gold_answer_has_too_may_stand_in_an_answer(judge, gold, answer):
    assert judge.score(gold, answer).correct


HANGS = ["\\exp(\\exp(\\exp(99)))", "(a+b+c+d+e+f+g+h)^{99}", "(1+i)^{9999}"]


@pytest.mark.few(2)
@pytest.mark.parametrize("answer", HANGS)
def test_an_answer_that_is_never_worked_out_is_wrong_and_no_fault_of_the_verifier(
    judge, monkeypatch, answer
):
    monkeypatch.setattr(latex, "CHECK_S", 1.0)
    start = time.perf_counter()
    score = judge.score("\\sqrt{2}", answer)
    assert (score.correct, score.error) == (False, None)
    assert time.perf_counter() - start < 10
    assert judge.score("\\sqrt{8}", "2\\sqrt{2}").correct


def test_an_answer_is_to_blame_where_the_verifier_works_without_it():
    class Hanging:
        def ask(self, request, *, timeout_s):
            if request["answer"] != request["gold"]:
                raise WorkerError("no answer", timed_out=True)
            return {"equal": True}

    judge = Judge()
    judge._worker = Hanging()
    score = judge.score("\\sqrt{2}", "\\sqrt{3}")
    assert (score.correct, score.well_formed, score.error, score.timed_out) == (
        False,
        True,
        None,
        True,
    )


def test_what_cannot_be_parsed_is_wrong_and_hangs_nothing(judge):
    start = time.perf_counter()
    for answer in ("\\sqrt{", "}{", "\\foo", "x+", "((", "\\frac{1}", "1/0x", "\\text{}", "?"):
        score = judge.score("\\sqrt{2}", answer)
        assert not score.correct and score.error is None
    assert time.perf_counter() - start < 5


def test_a_check_over_its_limit_is_killed_and_counted(judge, monkeypatch):
    monkeypatch.setattr(latex, "CHECK_S", 1e-4)
    score = judge.score("\\sqrt{2}", "\\sqrt{3}")
    assert score.timed_out and score.error and "within" in score.error
    monkeypatch.undo()
    assert judge.score("\\sqrt{8}", "2\\sqrt{2}").correct
