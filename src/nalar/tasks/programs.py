"""Small programs: a function over a list of integers, described in words and judged by hidden tests in a sandbox."""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nalar.sandbox.box import Box, same
from nalar.sandbox.config import SandboxConfig
from nalar.tasks.answers import NOT_READ
from nalar.tasks.config import ProgramsConfig
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score

FUNCTION = "f"
MAX_PROGRAM = 20_000
"""Characters."""
_FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)```", re.DOTALL)
_DEFINITION = re.compile(rf"^def {FUNCTION}\(", re.MULTILINE)

Numbers = list[int]


class Step(NamedTuple):
    """One thing that is done to a list: in words, in Python, and as it is worked out here.

    `{k}` in words and code stands for a small number that the problem chooses.
    """

    words: str
    code: str
    apply: Callable[[Numbers, int], Any]


MIDDLE: Mapping[str, Step] = {
    "even": Step(
        "keep only the even numbers",
        "[x for x in xs if x % 2 == 0]",
        lambda xs, k: [x for x in xs if x % 2 == 0],
    ),
    "odd": Step(
        "keep only the odd numbers",
        "[x for x in xs if x % 2]",
        lambda xs, k: [x for x in xs if x % 2],
    ),
    "above": Step(
        "keep only the numbers greater than {k}",
        "[x for x in xs if x > {k}]",
        lambda xs, k: [x for x in xs if x > k],
    ),
    "below": Step(
        "keep only the numbers less than {k}",
        "[x for x in xs if x < {k}]",
        lambda xs, k: [x for x in xs if x < k],
    ),
    "add": Step(
        "add {k} to each number", "[x + {k} for x in xs]", lambda xs, k: [x + k for x in xs]
    ),
    "times": Step(
        "multiply each number by {k}", "[x * {k} for x in xs]", lambda xs, k: [x * k for x in xs]
    ),
    "square": Step("square each number", "[x * x for x in xs]", lambda xs, k: [x * x for x in xs]),
    "negate": Step(
        "change the sign of each number", "[-x for x in xs]", lambda xs, k: [-x for x in xs]
    ),
    "reverse": Step("reverse the list", "xs[::-1]", lambda xs, k: xs[::-1]),
    "sort": Step("sort the list from small to large", "sorted(xs)", lambda xs, k: sorted(xs)),
    "unique": Step(
        "keep only the first of equal numbers",
        "list(dict.fromkeys(xs))",
        lambda xs, k: list(dict.fromkeys(xs)),
    ),
    "drop": Step("drop the first {k} numbers", "xs[{k}:]", lambda xs, k: xs[k:]),
}
LAST: Mapping[str, Step] = {
    "list": Step("return the list", "xs", lambda xs, k: xs),
    "sum": Step("return the sum", "sum(xs)", lambda xs, k: sum(xs)),
    "count": Step("return how many numbers are left", "len(xs)", lambda xs, k: len(xs)),
    "max": Step(
        "return the largest number, or 0 where there is none",
        "max(xs, default=0)",
        lambda xs, k: max(xs, default=0),
    ),
    "min": Step(
        "return the smallest number, or 0 where there is none",
        "min(xs, default=0)",
        lambda xs, k: min(xs, default=0),
    ),
    "last": Step(
        "return the last number, or 0 where there is none",
        "xs[-1] if xs else 0",
        lambda xs, k: xs[-1] if xs else 0,
    ),
}

Plan = list[tuple[str, int]]
"""The name of each step and its number k, the last from LAST."""


def worked_out(plan: Sequence[Sequence[Any]], numbers: Numbers) -> Any:
    """What the function gives, worked out here: the answer never enters the sandbox."""
    value: Any = list(numbers)
    for name, k in plan[:-1]:
        value = MIDDLE[name].apply(value, k)
    return LAST[plan[-1][0]].apply(value, plan[-1][1])


def source(plan: Sequence[Sequence[Any]]) -> str:
    """A program that does it."""
    lines = [f"    xs = {MIDDLE[name].code.format(k=k)}" for name, k in plan[:-1]]
    return "\n".join([f"def {FUNCTION}(xs):", *lines, f"    return {LAST[plan[-1][0]].code}", ""])


def program_of(answer: str) -> str | None:
    """The program in an answer: its one block of code, or all of it; None where there is no definition of f, or two."""
    if len(answer) > MAX_PROGRAM:
        return None
    blocks = _FENCE.findall(answer)
    found = [block for block in blocks or [answer.strip()] if _DEFINITION.search(block)]
    return found[0] if len(found) == 1 and ("```" not in answer or blocks) else None


class Programs(Family):
    """Pipelines of steps that do not give the same for most inputs, and whose every step matters.

    The key is the pipeline. Expected values are compared here, by type and value; the program sees inputs only.
    """

    id = "programs"
    is_costly = True

    def __init__(self, config: ProgramsConfig | None = None, *, is_judge: bool = True) -> None:
        """UserError where this machine has no isolation of `min_tier`; with is_judge=False none is needed or used."""
        self.settings = config or ProgramsConfig()
        super().__init__(self.settings)
        self._box = Box(SandboxConfig(min_tier=self.settings.min_tier))
        if is_judge:
            self.tier = self._box.tier

    def make(self, rng: random.Random) -> Problem | None:
        plan = self._plan(rng)
        tests = self._tests(rng)
        if not _matters(plan, tests):
            return None
        steps = [*(MIDDLE[name] for name, _ in plan[:-1]), LAST[plan[-1][0]]]
        words = [step.words.format(k=k) for step, (_, k) in zip(steps, plan, strict=True)]
        return Problem(
            task=self.id,
            key=key_of(plan),
            prompt=f"Write a Python function {FUNCTION}(xs). xs is a list of integers. {_told(words)}",
            data={"plan": [list(step) for step in plan], "tests": tests},
        )

    def _plan(self, rng: random.Random) -> Plan:
        count = rng.randint(self.settings.min_steps, self.settings.max_steps)
        middle = [(rng.choice(list(MIDDLE)), rng.randint(2, 5)) for _ in range(count - 1)]
        return [*middle, (rng.choice(list(LAST)), 0)]

    def _tests(self, rng: random.Random) -> list[Numbers]:
        top, most = self.settings.max_number, self.settings.max_items
        tests: list[Numbers] = [[]]
        while len(tests) < self.settings.num_tests:
            numbers = [rng.randint(-top, top) for _ in range(rng.randint(1, most))]
            if len(numbers) > 1 and rng.random() < 0.5:
                numbers[-1] = numbers[0]  # so that equal numbers occur
            tests.append(numbers)
        return tests

    def gold(self, problem: Problem) -> str:
        return source(problem.data["plan"])

    def score(self, problem: Problem, answer: str) -> Score:
        """Well-formed: a program that loads and has f. Correct: right on every hidden test.

        A program that runs over its limits is wrong, and `timed_out` says so; a sandbox that fails is an error.
        """
        program = program_of(answer)
        if program is None:
            return NOT_READ
        tests = problem.data["tests"]
        outcome = self._box.call(program, FUNCTION, [[numbers] for numbers in tests])
        if outcome.kind == "broken":
            return Score(False, True, error=f"sandbox: {outcome.why}")
        if outcome.kind != "done":
            is_late = outcome.kind == "timeout"
            return Score(correct=False, well_formed=outcome.kind != "failed", timed_out=is_late)
        wanted = [worked_out(problem.data["plan"], numbers) for numbers in tests]
        correct = all(
            gave and same(value, want)
            for (gave, value), want in zip(outcome.values, wanted, strict=True)
        )
        told = json.dumps(outcome.values)
        return Score(correct=correct, well_formed=True, canonical=told[:_VOTE_CHARS])

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """A program of as many steps, whatever the words say."""
        count = len(problem.data["plan"])
        plan = self._plan(rng)
        while len(plan) != count:
            plan = self._plan(rng)
        return source(plan)

    def close(self) -> None:
        self._box.close()


_VOTE_CHARS = 4000


def key_of(plan: Plan) -> str:
    """What a problem with this pipeline is split by."""
    return f"programs:{' '.join(map(named, plan))}"


def named(step: tuple[str, int]) -> str:
    """A step's name, with its number where it has one."""
    name, k = step
    has_number = name in MIDDLE and "{k}" in MIDDLE[name].words
    return f"{name}{k}" if has_number else name


def _told(words: Sequence[str]) -> str:
    """`First A, then B, and then return C.`"""
    first, *rest = words
    if not rest:
        return f"{first[0].upper()}{first[1:]}."
    return f"First {first}, {''.join(f'then {word}, ' for word in rest[:-1])}and then {rest[-1]}."


def _matters(plan: Plan, tests: Sequence[Numbers]) -> bool:
    """Whether results differ from input to input, from the input, and from those of the plan without any one step."""
    results = [worked_out(plan, numbers) for numbers in tests]
    if results == tests or len({json.dumps(result) for result in results}) < 3:
        return False
    shorter = [plan[:i] + plan[i + 1 :] for i in range(len(plan) - 1)]
    return all(results != [worked_out(less, numbers) for numbers in tests] for less in shorter)
