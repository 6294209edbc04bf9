"""Problems of one's own from JSONL, in the form of GSM8K, of MATH, or plain: text in, one final answer out."""

import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from nalar.config import Config, UserError
from nalar.tasks.answers import NOT_READ
from nalar.tasks.final import boxed, final_answer
from nalar.tasks.latex import Judge, canonical, quantity
from nalar.tasks.problem import Problem, Score, Split, is_text, split_of

MAX_RECORDS = 2_000_000
MAX_LINE = 1_000_000
"""Characters."""
BOXED = " Put the final answer in \\boxed{}."


Form = Literal["gsm8k", "math", "plain"]
_FIELDS: Mapping[Form, str] = {
    "gsm8k": "question, and answer with #### before its number",
    "math": "problem, and answer, or solution with a box",
    "plain": "question or prompt, and answer",
}


class TextConfig(Config):
    """A file of problems, one JSON object a line."""

    path: str = Field(min_length=1)
    form: Form | None = None
    """gsm8k: `question`, and `answer` that ends in #### and a number. math: `problem`, and `answer`, or `solution`
    with a box. plain: `question` or `prompt`, and `answer`. None: what the first record looks like."""
    split: Literal["hash", "train", "test"] = "hash"
    """hash: train, valid and test by the hash of each question. train: a file of train problems, of which 8%
    are valid. test: a file of test problems alone."""
    golds: Literal["all", "numbers"] = "all"
    """numbers: leave out problems whose answer is not an integer, a fraction or a decimal; the others need the
    package math-verify (`nalar[math]`)."""
    boxed: bool = False
    """Ask for the answer in a box, behind every question."""
    name: str | None = None
    """Task id. None: the file's name without its suffix."""


class TextProblems:
    """The problems of a file, each checked when it is read. A question that stands in the file twice is refused."""

    searches = False
    is_checkable = False

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self.id = config.name or Path(config.path).stem
        self.num_left_out = 0
        """Problems whose gold answer is no number, where only numbers are wanted."""
        self._judge = Judge()
        self._by_split: dict[Split, list[Problem]] = {"train": [], "valid": [], "test": []}
        self._read()
        every = itertools.chain(*self._by_split.values())
        self.is_costly = any(quantity(self.gold(problem)) is None for problem in every)
        """Whether Math-Verify is asked."""
        if self.is_costly:
            self._judge.refuse_without_package()

    def _read(self) -> None:
        lines: dict[str, int] = {}
        form = self.config.form
        for number, record in _records(self.config.path):
            where = f"{self.config.path}:{number}"
            form = form or _form_of(record, where)
            question, gold = _question_and_gold(record, form, where)
            key = normalised(question)
            if key in lines:
                raise UserError(
                    at=where,
                    got=f"the question of line {lines[key]} again: {question[:80]!r}",
                    want="each question once",
                )
            lines[key] = number
            if self.config.golds == "numbers" and quantity(gold) is None:
                self.num_left_out += 1
                continue
            problem = Problem(
                task=self.id,
                key=f"text:{key}",
                prompt=question + (BOXED if self.config.boxed else ""),
                data={"gold": gold},
            )
            self._by_split[self._split_of(problem.key)].append(problem)
        if not any(self._by_split.values()):
            left = f" ({self.num_left_out} whose answer is no number)" if self.num_left_out else ""
            raise UserError(at=self.config.path, got=f"no problem{left}", want="one at least")

    def _split_of(self, key: str) -> Split:
        if self.config.split == "test":
            return "test"
        split = split_of(key)
        return "train" if self.config.split == "train" and split == "test" else split

    @property
    def splits(self) -> list[Split]:
        """Those that have problems."""
        return [split for split, problems in self._by_split.items() if problems]

    def all_of(self, split: Split) -> list[Problem]:
        """In the order of the file."""
        return list(self._by_split[split])

    def draw(self, rng: random.Random, split: Split) -> Problem:
        found = self._by_split[split]
        if not found:
            raise UserError(
                at=self.config.path,
                got=f"split={self.config.split}, which leaves no {split} problem",
                want=f"a file with {split} problems",
            )
        return found[int(rng.random() * len(found))]

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        rng = random.Random(f"text {split} {seed}")
        chosen = list(self._by_split[split])
        rng.shuffle(chosen)
        return chosen[:n]

    def gold(self, problem: Problem) -> str:
        answer: str = problem.data["gold"]
        return answer

    def score(self, problem: Problem, answer: str) -> Score:
        """The final answer: in a box, behind ####, or all there is. A gold number wants a number."""
        final = final_answer(answer)
        if final is None:
            return NOT_READ
        return self._judge.score(self.gold(problem), final)

    def constants(self) -> Iterator[str]:
        counts: dict[str, int] = {}
        for problem in self._by_split["train"] or self._by_split["test"]:
            counts[self.gold(problem)] = counts.get(self.gold(problem), 0) + 1
        yield from sorted(counts, key=lambda gold: -counts[gold])[:30]

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """The answer of another problem."""
        return self.gold(self.draw(rng, "train" if self._by_split["train"] else "test"))


def normalised(question: str) -> str:
    """Letters and digits in lower case, one space between: what stays of a question however it is laid out."""
    return " ".join(re.findall(r"\w+|[^\w\s]", question.lower()))


def _records(path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig") as file:
            lines = iter(lambda: file.readline(MAX_LINE + 1), "")
            for number, line in enumerate(lines, start=1):
                where = f"{path}:{number}"
                if number > MAX_RECORDS:
                    raise UserError(at=path, got="more lines", want=f"at most {MAX_RECORDS}")
                if len(line) > MAX_LINE:
                    want = f"at most {MAX_LINE} characters a line"
                    raise UserError(at=where, got="a longer line", want=want)
                if line.strip():
                    yield number, _record(line, where)
    except OSError as error:
        raise UserError(
            at=path, got=error.strerror or str(error), want="a file of problems"
        ) from None
    except UnicodeDecodeError:
        raise UserError(at=path, got="bytes that are not UTF-8", want="a file of text") from None


def _record(line: str, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UserError(at=where, got=line.strip()[:80], want="a JSON object")
    return record


def _form_of(record: Mapping[str, Any], where: str) -> Form:
    if "problem" in record:
        return "math"
    if "####" in str(record.get("answer", "")):
        return "gsm8k"
    if "answer" in record:
        return "plain"
    raise UserError(
        at=where,
        got=f"the fields {', '.join(record) or 'none'}",
        want="a question and an answer",
        hint="form=gsm8k, form=math or form=plain: docs/tasks.md",
    )


def _question_and_gold(record: Mapping[str, Any], form: Form, where: str) -> tuple[str, str]:
    """UserError that shows the record where it has no question, or no answer that can be found."""
    names = {"gsm8k": ("question",), "math": ("problem",), "plain": ("question", "prompt")}[form]
    question = next((record[n] for n in names if isinstance(record.get(n), str)), "")
    gold = record.get("answer")
    if isinstance(gold, int | float) and not isinstance(gold, bool):
        written = Decimal(str(gold))
        gold = format(written, "f") if written.is_finite() else None
    if form == "gsm8k" and isinstance(gold, str):
        gold = gold.rpartition("####")[2] if "####" in gold else None
    if form == "math" and gold is None and isinstance(record.get("solution"), str):
        boxes = boxed(record["solution"])
        gold = boxes[-1] if boxes else None
    if not is_text(question) or (isinstance(gold, str) and not is_text(gold)):
        got = json.dumps(record)[:120]
        raise UserError(at=where, got=got, want="text, without lone surrogates")
    is_one = isinstance(gold, str) and canonical(gold) and final_answer(gold) is not None
    if not question.strip() or not isinstance(gold, str) or not is_one:
        lacking = "one answer" if question.strip() else "a question"
        raise UserError(
            at=where,
            got=json.dumps(record, ensure_ascii=False)[:120],
            want=f"{lacking}, as the form {form} has it: {_FIELDS[form]}",
        )
    return question.strip(), gold.strip()
