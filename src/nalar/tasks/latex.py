"""Compare final answers of mathematics: numbers exactly, the same writing as equal, the rest by Math-Verify."""

import math
import re
from fractions import Fraction
from typing import NamedTuple

from nalar.sandbox.worker import Worker, WorkerError
from nalar.tasks.answers import NOT_READ, read_number
from nalar.tasks.problem import Score

CHECK_S = 5.0
"""Seconds that Math-Verify may take over one answer."""
WORKER_BYTES = 2 * 2**30
_SPACES = re.compile(r"\\[,;:!> ]|\\q?quad|~|\\left(?![a-z])|\\right(?![a-z])|\s+")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|textit)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"(-?)\\frac(?:\{(-?[0-9]+)\}|([0-9]))(?:\{([0-9]+)\}|([0-9]))")
_GROUPS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_NAMED = re.compile(r"[A-Za-z]=")
_UNIT = re.compile(r"(?:\^\{?\\circ\}?|\\%|%|\\text\{[^{}]*\}(?:\^[0-9])?)$")
_UNSAFE = re.compile(r"!|\\(?:binom|choose|sum|prod|int|lim|def|input|write|include)|[0-9]{40,}")
_TOWER = re.compile(r"\^\s*(?:\{[^{}]*\}|\w)\s*\^")
_EXPONENT = re.compile(r"\^(?:\{([^{}]*)\}|(\w))")
_APART = re.compile(r"[0-9](?:\s|~|\\ )+[0-9]")
_SIGNS = re.compile(r"\\(?:[a-zA-Z]+|.)|[^\sA-Za-z0-9{}()^_+*/,.\[\]-]", re.DOTALL)
_PLAIN_SIGNS = frozenset(
    re.findall(
        r"\S+",
        r"""\{ \} \frac \sqrt \cdot \times \div \pi \infty \circ \sin \cos \tan \cot \sec \csc \arcsin \arccos \arctan
    \sinh \cosh \tanh \log \ln \alpha \beta \gamma \delta \epsilon \varepsilon \theta \lambda \mu \nu \rho \sigma \tau
    \phi \varphi \psi \omega""",
    )
)
"""Commands that join no two answers to one, and hide none: an answer may have any number of them."""
_MAX_DEPTH = 12
_MAX_POWER = 10_000
"""Product of all numbers that stand in exponents: however powers nest, no result has more digits than some 10,000s."""


class Quantity(NamedTuple):
    """A number and what stands behind it, such as `\\%`; "" where nothing does."""

    value: Fraction
    unit: str


def canonical(text: str) -> str:
    """One spelling for what differs in spaces, sizes of fractions and brackets, and braces around one sign."""
    text = text.replace("{,}", ",").replace(",\\!", ",")
    text = re.sub(r"\\([dt])frac", r"\\frac", text).replace("\\$", "").replace("−", "-")
    text = _SPACES.sub("", text)
    text = re.sub(r"\\([lg])eq?(?![a-z])", r"\\\1e", text)
    return re.sub(r"([_^])\{(\w)\}", r"\1\2", text)


def quantity(text: str) -> Quantity | None:
    """A number as mathematics writes it: `1,080`, `\\frac{3}{4}`, `x=5`, `90^\\circ`; None for all else."""
    if _APART.search(text):  # 5 1/2 is neither 51/2 nor one number
        return None
    text = canonical(text).removeprefix("$")
    text = text[2:] if _NAMED.match(text) else text
    unit = ""
    if found := _UNIT.search(text):
        text, unit = text[: found.start()], _TEXT.sub(r"\1", found.group()).lower()
    if _GROUPS.fullmatch(text):
        text = text.replace(",", "")
    if found := _FRACTION.fullmatch(text):
        sign, above, one_above, below, one_below = found.groups()
        text = f"{above or one_above}/{below or one_below}"
        text = text.removeprefix("-") if sign and text.startswith("-") else f"{sign}{text}"
    value = read_number(f"0{text}" if text.startswith(".") else text)
    return None if value is None else Quantity(value, unit)


def is_bounded(text: str) -> bool:
    """Whether a parser of mathematics may see it: no towers of powers, nothing that is long to work out."""
    depth = deepest = 0
    for sign in text:
        depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(sign, 0)
        deepest = max(deepest, depth)
    if deepest > _MAX_DEPTH or not text.isascii() or _UNSAFE.search(text) or _TOWER.search(text):
        return False
    exponents = _EXPONENT.findall(text)
    if len(exponents) != text.count("^") or any("^" in inner for inner, _ in exponents):
        return False
    numbers = [int(n) for pair in exponents for n in re.findall("[0-9]+", "".join(pair)) if int(n)]
    return math.prod(numbers) <= _MAX_POWER


class Judge:
    """Scores one final answer against a gold one."""

    def __init__(self) -> None:
        self._worker = Worker("nalar.tasks.latex_worker", memory_bytes=WORKER_BYTES)

    def score(self, gold: str, answer: str) -> Score:
        """A gold number wants a number: no calculation, however right. Others may be written in another way."""
        wanted = quantity(gold)
        if wanted is not None:
            given = quantity(answer)
            if given is None:
                return NOT_READ
            fits = given.unit in ("", wanted.unit) or (not wanted.unit and given.unit in _BARE)
            correct = fits and given.value == wanted.value
            return Score(correct=correct, well_formed=True, canonical=str(given.value))
        told, own = _plain(answer), _plain(gold)
        if told == own or (_TEXT.search(gold) and told.lower() == own.lower()):
            return Score(correct=True, well_formed=True, canonical=own)
        if not is_bounded(answer):
            return NOT_READ
        if not (may_be_equal(own, told) and says_one_thing(gold, answer)):
            return Score(correct=False, well_formed=True, canonical=told)
        return self._ask(gold, answer, told)

    def _ask(self, gold: str, answer: str, told: str) -> Score:
        """By Math-Verify. Where it fails at the answer and not at the gold one, the answer is to blame: wrong."""
        verdict = self._asked(gold, answer, told)
        if verdict.error is None or self._asked(gold, gold, told).error is not None:
            return verdict
        return Score(False, True, told, timed_out=verdict.timed_out)

    def _asked(self, gold: str, answer: str, told: str) -> Score:
        try:
            reply = self._worker.ask({"gold": gold, "answer": answer}, timeout_s=CHECK_S)
        except WorkerError as error:
            return Score(False, True, told, f"math-verify: {error}", error.timed_out)
        if "error" in reply:
            return Score(False, True, told, f"math-verify: {reply['error']}")
        return Score(correct=reply.get("equal") is True, well_formed=True, canonical=told)

    def refuse_without_package(self) -> None:
        """UserError now, and not at the first answer, where Math-Verify is wanted and not installed."""
        self._asked("\\sqrt{2}", "\\sqrt{2}", "")

    def close(self) -> None:
        self._worker.close()


_BARE = ("^\\circ", "\\%", "%")
"""Signs that an answer may carry where the gold one has none."""


def _plain(text: str) -> str:
    """As it stands, words without the command that sets them upright, in lower case."""
    bare = _TEXT.sub(lambda found: found[1].strip().lower(), text)
    return canonical(bare).removesuffix(".")


_TELLING = ("\\cup", "\\pm", "\\begin", "[", "]", "<", ">", "\\le", "\\ge", "%")


def may_be_equal(gold: str, answer: str) -> bool:
    """What Math-Verify is not asked, since it overlooks it: bases, equations, lists of another length, words.

    Both as `_plain` writes them.
    """
    if re.search(r"_\d|[0-9]_", gold) or ("_" in answer and "_" not in gold):
        return False  # 52_8 is not 52
    if gold.count("=") != answer.count("=") or gold.count(",") != answer.count(","):
        return False
    if "." in answer and "." not in gold:
        return False  # 1.414214 is not \\sqrt{2}
    if any((sign in answer) != (sign in gold) for sign in _TELLING):
        return False
    return not re.fullmatch(r"\(?[a-z]+\)?", gold)  # a word, or the letter of a choice


def says_one_thing(gold: str, answer: str) -> bool:
    """Whether the answer has no sign with which two could be joined, or one hidden, that the gold one has not too.

    Math-Verify takes the first or the last of what stands beside `$ $`, `\\approx`, `:`, and passes over words. A unit
    behind the gold answer may be left out.
    """
    mine, theirs = (_SIGNS.findall(canonical(_TEXT.sub("", text))) for text in (gold, answer))
    if any(mine.count(sign) != theirs.count(sign) for sign in {*theirs, *mine} - _PLAIN_SIGNS):
        return False
    own, told = ([word.strip().lower() for word in _TEXT.findall(text)] for text in (gold, answer))
    return told == own or (not told and bool(_UNIT.search(gold.strip())))
