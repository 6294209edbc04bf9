"""What a thought in a search says: its tries, and whether each was marked as a hit or a miss."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HIT, MISS = "✓", "✗"
_HIT_WORDS, _MISS_WORDS = (HIT, "yes"), (MISS, "no")
# one step a(op)b=c; a try is one or more of them, ended by a verdict
_STEP = re.compile(r"(-?\d{1,4})\s?([-+*])\s?(-?\d{1,4})\s?=\s?(-?\d{1,6})")
_VERDICT = re.compile(f"{HIT}|{MISS}|yes|no")


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
    """Whether a try marked wrong is followed by another try."""
    tries = marked_tries(thought)
    if any(not t.marked_hit for t in tries[:-1]):
        return True
    # the last verdict may be followed by a try that was cut before its own
    tail = _VERDICT.split(thought)[-1]
    return bool(tries) and not tries[-1].marked_hit and _STEP.search(tail) is not None


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
        value = a + b if op == "+" else a - b if op == "-" else a * b
        if value != int(claimed):
            return False
        pool.append(value)
    return value == data["target"] and pool == [value]


def steps_right(text: str) -> list[bool]:
    """Of each step in a text, whether its arithmetic is right."""
    results = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    return [
        results[op](int(left), int(right)) == int(claimed)
        for left, op, right, claimed in _STEP.findall(text)
    ]
