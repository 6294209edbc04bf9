"""Read arithmetic written by a model: + - * / over non-negative integers and parentheses, exactly and within bounds.

Nothing is ever executed. Length, depth and the size of a literal are limited, which bounds every intermediate:
no value can have more digits than the text.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_CHARS = 200
MAX_DEPTH = 32
"""Nesting of parentheses."""
MAX_NUMBER = 10**9
"""Largest literal."""

_LOOKALIKES = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "∕": "/"})
_TOKEN = re.compile(r"[0-9]+|[-+*/()]|[ \t]+")


class ExpressionError(ValueError):
    """The text is not an expression, or it is beyond the limits, or it divides by zero."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What an expression says."""

    value: Fraction
    numbers: tuple[int, ...]
    """The literals, in order of appearance."""
    canonical: str
    """Minimal parentheses, commutative operands sorted as text, no spaces: `4*(9-3)` and `(9 - 3)*4` are one."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A flattened sum or product, or an atom. `plus` join with + or *, `minus` with - or /, all as canonical text."""

    value: Fraction
    kind: str  # "+" sum, "*" product, "" atom
    plus: tuple[str, ...]
    minus: tuple[str, ...] = ()

    def text(self) -> str:
        inverse = "-" if self.kind == "+" else "/"
        return self.kind.join(sorted(self.plus)) + "".join(inverse + t for t in sorted(self.minus))

    def operands(self, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """This node as operands of a sum ("+") or a product ("*"), flattened into it where it is one itself."""
        if self.kind == kind:
            return self.plus, self.minus
        text = self.text()
        return (f"({text})" if kind == "*" and self.kind == "+" else text,), ()


class _Reader:
    """Recursive descent over a list of tokens; the depth limit keeps the recursion shallow."""

    def __init__(self, tokens: list[str], max_number: int, signed: bool) -> None:
        self.tokens, self.max_number, self.signed = tokens, max_number, signed
        self.at = 0
        self.depth = 0
        self.numbers: list[int] = []

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def level(self, kind: str) -> _Node:
        """A sum of products ("+") or a product of atoms ("*"), left to right."""
        inverse = "-" if kind == "+" else "/"
        left = self.operand(kind)
        while (operator := self.peek()) and operator in (kind, inverse):
            self.at += 1
            right = self.operand(kind)
            plus, minus = left.operands(kind)
            more, less = right.operands(kind)
            if operator == inverse:
                more, less = less, more
            left = _Node(_apply(operator, left.value, right.value), kind, plus + more, minus + less)
        return left

    def operand(self, kind: str) -> _Node:
        return self.level("*") if kind == "+" else self.atom()

    def atom(self) -> _Node:
        token = self.peek()
        self.at += 1
        if token == "(":
            return self.group()
        if token == "-" and self.signed:
            inner = self.atom()
            return _Node(-inner.value, "", (f"-{inner.text()}",))
        if not token.isdigit():
            raise ExpressionError(f"wanted a number or '(', got {token or 'the end'!r}")
        if int(token) > self.max_number:
            raise ExpressionError(f"number {token} is above {self.max_number}")
        number = int(token)
        self.numbers.append(number)
        return _Node(Fraction(number), "", (str(number),))

    def group(self) -> _Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError(f"parentheses nest deeper than {MAX_DEPTH}")
        inner = self.level("+")
        if self.peek() != ")":
            raise ExpressionError(f"wanted ')', got {self.peek() or 'the end'!r}")
        self.at += 1
        self.depth -= 1
        return inner


def _apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if right == 0:
        raise ExpressionError("division by zero")
    return left / right


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"{len(text)} characters, limit {MAX_CHARS}")
    text = text.translate(_LOOKALIKES)
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ExpressionError(f"character {text[at]!r} has no place in an expression")
        if not match.group().isspace():
            tokens.append(match.group())
        at = match.end()
    return tokens


@lru_cache(maxsize=1024)
def parse(text: str, *, max_number: int = MAX_NUMBER, signed: bool = False) -> Parsed:
    """The value, numbers and canonical form of an expression; any other text raises ExpressionError.

    Spaces and the usual Unicode minus, times and division signs are tolerated; unary minus only where it is `signed`,
    and then the canonical form is no identity: `-2` may stand in many ways. The last answers are kept: baselines and
    votes ask for one text again and again.
    """
    reader = _Reader(_tokens(text), max_number, signed)
    node = reader.level("+")
    if reader.peek():
        raise ExpressionError(f"{reader.peek()!r} after the end of the expression")
    return Parsed(node.value, tuple(reader.numbers), node.text())
