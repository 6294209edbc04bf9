"""What a data set is made of: a line a dialogue, with where it came from. No torch."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nalar.config import UserError
from nalar.data.config import FileSource
from nalar.data.dialogue import encode_dialogue
from nalar.data.reader import open_source
from nalar.data.source_words import source_of
from nalar.data.tokenizer import Tokenizer
from nalar.evals.origins import FILE, PROCEDURAL
from nalar.pipeline.collect_config import CollectConfig
from nalar.tasks.problem import Problem, Task
from nalar.tasks.rated import Rated

Form = Literal["whole", "no_thinking", "cut_thought"]
MAX_BAD_FRAC = 0.1
"""Of a file's records, those that are no dialogues: more are an error."""
_TEXTS = ("role", "content", "reasoning_content")


class Line(BaseModel):
    """A line of `dataset.jsonl`. Only gains keys."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    messages: list[dict[str, str]]
    """As `nalar sft` reads them."""
    origin: str
    """`self`, `procedural`, `judge:MODEL` or `file:NAME` (evals/origins.py)."""
    stage: str
    """The run that wrote it."""
    form: Form = "whole"
    """no_thinking: the same answer without its thought. cut_thought: with a part of it."""
    task: str | None = None
    key: str | None = None
    """Of the problem: equal keys are the same problem."""
    level: str | None = None
    model: str | None = None
    """SHA-256 over the weights of who was sampled. None: nobody was."""
    policy: str | None = None
    """The last two names of the folder that those lay in."""
    seed: int | None = None
    """Of the problem's samples, and below which of them this is: with the model they give it again."""
    sample: int | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    """What stands behind the prompt, as the tokenizer of who was sampled counts."""
    filters: list[str] = Field(default_factory=list)
    """Names of those that it passed."""
    rewritten: bool = False

    def row(self) -> dict[str, Any]:
        """As JSON, without what it lacks."""
        return self.model_dump(mode="json", exclude_none=True)


def dialogue(prompt: str, answer: str, thought: str | None = None) -> list[dict[str, str]]:
    """A prompt and the reply to it; without a thought, one that was asked for so."""
    said = {} if thought is None else {"reasoning_content": thought}
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", **said, "content": answer},
    ]


def with_forms(
    lines: Sequence[Line], config: CollectConfig, tokenizer: Tokenizer
) -> Iterator[Line]:
    """The lines, and behind some of them the same once more: without its thought, or with a part of it.

    Whose turn it is follows from the seed and the lines alone.
    """
    thoughts = [tokenizer.encode(line.messages[-1].get("reasoning_content", "")) for line in lines]
    bare = _chosen(thoughts, config.no_thinking_frac, 1, f"{config.seed}/no_thinking")
    cut = _chosen(thoughts, config.cut_thought_frac, 2, f"{config.seed}/cut_thought")
    rng = random.Random(f"{config.seed}/cut_places")
    for place, line in enumerate(lines):
        yield line
        if place in bare:
            yield _again(line, "no_thinking", None, len(thoughts[place]))
        if place in cut:
            kept = thoughts[place][: rng.randrange(1, len(thoughts[place]))]
            text = tokenizer.decode(kept).rstrip("\N{REPLACEMENT CHARACTER}")  # half a character
            yield _again(line, "cut_thought", text, len(thoughts[place]) - len(kept))


def _chosen(
    thoughts: Sequence[Sequence[int]], frac: float, min_tokens: int, seed: str
) -> frozenset[int]:
    """A share of the lines, of those whose thoughts are long enough for it."""
    able = [place for place, ids in enumerate(thoughts) if len(ids) >= min_tokens]
    count = min(len(able), round(frac * len(thoughts)))
    return frozenset(random.Random(seed).sample(able, count))


def _again(line: Line, form: Form, thought: str | None, fewer: int) -> Line:
    asked, said = line.messages[0]["content"], line.messages[-1]["content"]
    changes = {"messages": dialogue(asked, said, thought), "form": form}
    return line.model_copy(update=changes | {"tokens": line.tokens - fewer})


def general_lines(
    word: str, task: Task, config: CollectConfig, tokenizer: Tokenizer, *, stage: str
) -> list[Line]:
    """The best answers to everyday requests, as their task rates them. UserError where it does not."""
    if not isinstance(task, Rated):
        raise UserError(
            at=f"general {word!r}",
            got="a task that does not rate answers",
            want="one that does, such as general or safety",
        )
    problems = task.problems("train", config.general_per_task, config.seed)
    golds = [task.gold(problem) for problem in problems]
    return [
        _counted(
            Line(
                messages=dialogue(problem.prompt, _best(task, problem, gold, config.seed)),
                origin=PROCEDURAL,
                stage=stage,
                form="no_thinking",
                task=task.id,
                key=problem.key,
                level=problem.level,
            ),
            tokenizer,
        )
        for problem, gold in zip(problems, golds, strict=True)
    ]


def _best(task: Rated, problem: Problem, gold: str, seed: int) -> str:
    """One of the answers of quality 1; the gold one where `variants` has none."""
    variants = task.variants(random.Random(f"{seed}/general/{problem.key}"), problem)
    return next((variant.text for variant in variants if variant.quality == 1), gold)


def file_lines(word: str, tokenizer: Tokenizer, *, stage: str) -> list[Line]:
    """The dialogues of a file. UserError where it has none, or too much that is none."""
    source = source_of(word)
    if not isinstance(source, FileSource):
        raise UserError(at=f"files {word!r}", got=source.where, want="a file of dialogues")
    reader = open_source(source.model_copy(update={"content": "dialogue"}))
    lines, faults = list[Line](), Counter[str]()
    origin = FILE + Path(source.path).name
    for _, record in reader.records(0, 0):
        if len(lines) == source.max_records:
            break
        if record.fault:
            faults[record.fault] += 1
            continue
        messages = [
            {name: one[name] for name in _TEXTS if one.get(name) is not None}
            for one in record.content
        ]
        lines.append(_counted(Line(messages=messages, origin=origin, stage=stage), tokenizer))
    if not lines or faults.total() > MAX_BAD_FRAC * (faults.total() + len(lines)):
        raise UserError(
            at=f"files {word!r}",
            got=f"{len(lines)} dialogues, and {dict(faults)} that are none",
            want=f"dialogues, and at most {MAX_BAD_FRAC:.0%} of anything else",
        )
    return lines


def _counted(line: Line, tokenizer: Tokenizer) -> Line:
    ids, own = encode_dialogue(tokenizer, line.messages)
    return line.model_copy(update={"prompt_tokens": len(ids) - sum(own), "tokens": sum(own)})
