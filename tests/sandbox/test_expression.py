import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalar.sandbox.expression import MAX_CHARS, ExpressionError, parse

Tree = int | tuple[str, "Tree", "Tree"]

TREES: st.SearchStrategy[Tree] = st.recursive(
    st.integers(0, 12),
    lambda inner: st.tuples(st.sampled_from("+-*/"), inner, inner),
    max_leaves=8,
)


def oracle(tree: Tree) -> Fraction:
    if isinstance(tree, int):
        return Fraction(tree)
    operator, left, right = tree
    a, b = oracle(left), oracle(right)
    if operator == "/":
        return a / b
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def written(tree: Tree) -> str:
    if isinstance(tree, int):
        return str(tree)
    operator, left, right = tree
    return f"({written(left)} {operator}{written(right)})"


def leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else leaves(tree[1]) + leaves(tree[2])


def mirrored(tree: Tree) -> Tree:
    """The same expression with the operands of + and * exchanged."""
    if isinstance(tree, int):
        return tree
    operator, left, right = tree
    left, right = mirrored(left), mirrored(right)
    return (operator, right, left) if operator in "+*" else (operator, left, right)


@given(st.text(max_size=250) | st.text("0123456789+-*/() −×", max_size=250))
@settings(deadline=None)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parsed = parse(text)
    except ExpressionError:
        return
    again = parse(parsed.canonical)
    assert (again.value, again.canonical) == (parsed.value, parsed.canonical)


@given(TREES)
@settings(deadline=None)
def test_values_agree_with_exact_fractions(tree: Tree) -> None:
    try:
        want = oracle(tree)
    except ZeroDivisionError:
        with pytest.raises(ExpressionError):
            parse(written(tree))
        return
    parsed = parse(written(tree))
    assert parsed.value == want
    assert list(parsed.numbers) == leaves(tree)
    assert parse(parsed.canonical).value == want
    assert parse(parsed.canonical).canonical == parsed.canonical
    assert parse(written(mirrored(tree))).canonical == parsed.canonical


@pytest.mark.parametrize(
    ("text", "value", "canonical"),
    [
        ("(9-3)*4", 24, "(9-3)*4"),
        ("4*(9-3)", 24, "(9-3)*4"),
        (" 4 × (9 − 3) ", 24, "(9-3)*4"),
        ("((3*7)+12)", 33, "12+3*7"),
        ("9-(7-5)", 7, "5+9-7"),
        ("2-3-4", -5, "2-3-4"),
        ("8/(4/2)", 4, "2*8/4"),
        ("1/3", Fraction(1, 3), "1/3"),
        ("007", 7, "7"),
    ],
)
def test_canonical_form_is_one_per_expression(text: str, value: int, canonical: str) -> None:
    parsed = parse(text)
    assert parsed.value == Fraction(value)
    assert parsed.canonical == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-3",
        "1+",
        "1 2",
        "(1",
        "1)",
        "2**3",
        "1=1",
        "٣+1",
        "²",
        "1_0",
        "1\n",
        "__import__('os')",
    ]
    + ["1/0", "1/(2-2)", "9" * 11, "(" * 40 + "1" + ")" * 40, "1+" * 150 + "1", "(" * 199],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse(text)


def test_the_longest_products_stay_exact() -> None:
    text = "*".join(["999999999"] * (MAX_CHARS // 10))
    assert parse(text).value == 999999999 ** (MAX_CHARS // 10)


def test_spaces_never_change_the_meaning() -> None:
    rng = random.Random(0)
    for _ in range(50):
        text = "(8-3)*9+12"
        at = rng.choice([i for i in range(len(text)) if not text[i - 1 : i + 1].isdigit()])
        assert parse(text[:at] + " " + text[at:]).canonical == parse(text).canonical
