"""What a thought in a search says: its tries, and whether each was marked as a hit or a miss."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HIT, MISS = "✓", "✗"
_HIT_WORDS, _MISS_WORDS = (HIT, "yes"), (MISS, "no")
# One step a(op)b=c; a try is one or more of them, ended by a verdict. Numbers are read whole or not at
# all, and `no` is no verdict inside another word. Only ASCII digits: \d would let others in.
_STEP = re.compile(
    r"(?<![0-9])(-?[0-9]{1,4})\s?([-+*/])\s?(-?[0-9]{1,4})\s?=\s?(-?[0-9]{1,6})(?![0-9])"
)
_VERDICT = re.compile(f"{HIT}|{MISS}|(?<![A-Za-z])(?:yes|no)(?![A-Za-z])")


@dataclass(frozen=True)
class MarkedTry:
    """A stretch of a thought that ends in a verdict."""

    text: str
    value: int | None
    """What its last step claims to give; None where no step could be read."""
    marked_hit: bool


def marked_tries(thought: str) -> list[MarkedTry]:
    """All tries that carry a verdict, in order."""
    found, start = [], 0
    for verdict in _VERDICT.finditer(thought):
        text = thought[start : verdict.start()].strip()
        steps = _STEP.findall(text)
        value = int(steps[-1][3]) if steps else None
        found.append(MarkedTry(text, value, verdict.group() in _HIT_WORDS))
        start = verdict.end()
    return found


def checks_itself(thought: str) -> bool:
    """Whether a try marked wrong is followed by another try, finished or not. A try has a step at least."""
    was_wrong, start = False, 0
    for verdict in _VERDICT.finditer(thought):
        is_try = _STEP.search(thought[start : verdict.start()]) is not None
        if was_wrong and is_try:
            return True
        was_wrong = was_wrong or (is_try and verdict.group() in _MISS_WORDS)
        start = verdict.end()
    return was_wrong and _STEP.search(thought[start:]) is not None


def is_hit(text: str, data: Mapping[str, Any]) -> bool:
    """Whether the steps of a try are right, use each number once and end on the target."""
    steps = _STEP.findall(text)
    pool = list(data["numbers"])
    value = None
    for left, op, right, claimed in steps:
        a, b = int(left), int(right)
        for operand in (a, b):
            if operand not in pool:
                return False
            pool.remove(operand)
        value = _result(a, op, b)
        if value is None or value != int(claimed):
            return False
        pool.append(value)
    return value == data["target"] and pool == [value]


def steps_right(text: str) -> list[bool]:
    """Of each step in a text, whether its arithmetic is right."""
    return [
        _result(int(left), op, int(right)) == int(claimed)
        for left, op, right, claimed in _STEP.findall(text)
    ]


def _result(a: int, op: str, b: int) -> int | None:
    """None where a division does not come out."""
    if op == "/":
        return a // b if b and a % b == 0 else None
    return a + b if op == "+" else a - b if op == "-" else a * b
