"""`nalar samples`: what a run's model said in RL and what it earned, the samples of a problem side by side."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import BaseModel
from rich import box
from rich.table import Table
from rich.text import Text

from nalar.cli import flags
from nalar.cli.choice import kind_of, open_run, stored_config
from nalar.cli.output import Document, Output
from nalar.config import UserError, lookup
from nalar.evals import units
from nalar.evals.text import printable
from nalar.pipeline.config import RlRunConfig
from nalar.run import ROLLOUTS, Run

SHOWN_PROBLEMS = 4
"""Problems of a step that are shown where none is chosen."""
_CHARACTERS = 160
"""Of a thought, where several problems are shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Show samples of RUN's RL: each problem, and all answers to it with the parts of their rewards, side by side.

    Of the first step, the last, and those between that --rl.rollout.save-every-steps chose. Try, after `nalar demo
    zero-tiny --run tiny`:

    nalar samples tiny --step 1 --problem 0
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run's folder: a name under runs/, or a path."""
    step: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Steps done with the one that is shown. None: the last that was kept."""
    task: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """Problems of this task alone."""
    problem: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """The problem of this number, with its whole thoughts. None: the first few, each thought in short."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


class Said(BaseModel):
    """One response. Its text is the model's own."""

    thought: str
    answer: str
    correct: bool
    reward: float
    parts: dict[str, float]
    """What each part of the reward earned, weighted; empty where the verifier failed."""
    error: str | None
    """Of the verifier."""
    tokens: int
    finish_reason: str


class Group(BaseModel):
    """All responses to one problem, in the order drawn."""

    problem: int
    """Its number in the step."""
    task: str
    prompt: str
    kept: bool
    """False: of equal rewards, and replaced by another problem's before training."""
    thinking: bool = True
    """False: asked with the thought closed."""
    samples: list[Said]


class SamplesDocument(Document):
    """What `samples --json` prints."""

    run: str
    step: int
    steps: list[int]
    """Those that were kept."""
    groups: list[Group]


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    asked = flags.parse(Samples, args, verb="samples")
    found = open_run(asked.run)
    files = _files(found)
    step = max(files) if asked.step is None else asked.step
    if step not in files:
        raise UserError(
            at="--step",
            got=str(step),
            want="a step whose samples were kept: " + ", ".join(map(str, files)),
            hint="--rl.rollout.save-every-steps 1, in a new run, keeps all",
        )
    groups = _chosen(_read(files[step], found), asked)
    document = SamplesDocument(run=str(found.path), step=step, steps=list(files), groups=groups)
    _show(document, out, is_whole=asked.problem is not None)
    out.document(document)
    return 0


def _files(found: Run) -> Mapping[int, Path]:
    """By step, in order."""
    paths = (found.path / ROLLOUTS).glob("step-*.jsonl")
    numbered = sorted((int(name), path) for path in paths if (name := path.stem[5:]).isdecimal())
    if not numbered:
        raise UserError(
            at=str(found.path),
            got="no samples of RL",
            want="a run that has done a step of RL",
            hint="`nalar eval` and report.html show samples of evaluations",
        )
    return dict(numbered)


def _model_folder(found: Run) -> Path:
    """Whose tokenizer reads the samples: until RL has saved once, that of the model that it began with."""
    if kind_of(found) is RlRunConfig and not (found.path / "model").is_dir():
        return Path(stored_config(found, RlRunConfig).model)
    return found.model_dir()


def _read(path: Path, found: Run) -> list[Group]:
    from nalar.data.tokenizer import Tokenizer
    from nalar.rl.store import RolloutRow, read_rows

    tokenizer = Tokenizer.load(_model_folder(found))

    def said(row: RolloutRow) -> Said:
        rollout = row.rollout(tokenizer)
        return Said(
            thought=rollout.parsed.thought,
            answer=rollout.parsed.answer,
            correct=rollout.correct,
            reward=row.reward,
            parts=row.parts,
            error=row.score.error,
            tokens=len(row.token_ids),
            finish_reason=row.finish_reason,
        )

    groups = []
    for number, rows in groupby(read_rows(path), key=lambda row: row.group):
        first, *others = rows
        groups.append(
            Group(
                problem=number,
                task=first.problem.task,
                prompt=first.problem.prompt,
                kept=first.kept,
                thinking=first.thinking,
                samples=[said(row) for row in (first, *others)],
            )
        )
    return groups


def _chosen(groups: list[Group], asked: Samples) -> list[Group]:
    if asked.task is not None:
        lookup(asked.task, {group.task: group for group in groups}, at="--task")
        groups = [group for group in groups if group.task == asked.task]
    if asked.problem is None:
        return groups
    known = {group.problem: group for group in groups}
    if asked.problem not in known:
        raise UserError(
            at="--problem",
            got=str(asked.problem),
            want="one of " + ", ".join(map(str, known)),
        )
    return [known[asked.problem]]


def _show(document: SamplesDocument, out: Output, *, is_whole: bool) -> None:
    kept = ", ".join(map(str, document.steps))
    out.text(f"step {document.step} of {document.run} (kept: {kept})")
    for group in document.groups[:SHOWN_PROBLEMS]:
        out.text("")
        out.text(_table(group, is_whole=is_whole))
    more = document.groups[SHOWN_PROBLEMS:]
    if more:
        out.text(f"\n{len(more)} more: --problem {', '.join(str(one.problem) for one in more)}")


def _table(group: Group, *, is_whole: bool) -> Table:
    """A line a sample: what it earned, part by part, and what it said."""
    dropped = "" if group.kept else ", not trained on: its rewards are equal"
    title = Text.assemble(
        (f"problem {group.problem}  ", "bold"),
        (printable(group.prompt), "bold"),
        (f"  {group.task}{'' if group.thinking else ', without thinking'}{dropped}", "dim"),
    )
    table = Table(
        title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, show_edge=False
    )
    parts = list(dict.fromkeys(name for one in group.samples for name in one.parts))
    for name in ("reward", *parts, "tokens"):
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    table.add_column("thought → answer", ratio=1, overflow="fold")
    for one in group.samples:
        earned = [f"{one.parts[name]:.2f}" if name in one.parts else units.NONE for name in parts]
        cut = " cut" if one.finish_reason == "length" else ""
        style = "green" if one.correct else ""
        table.add_row(
            Text(f"{one.reward:.2f}", style=style),
            *earned,
            f"{one.tokens}{cut}",
            _words(one, is_whole=is_whole),
        )
    return table


def _words(one: Said, *, is_whole: bool) -> Text:
    thought = printable(one.thought)
    if not is_whole:
        thought = " ".join(thought.split())
        if len(thought) > _CHARACTERS:
            thought = thought[: _CHARACTERS // 2] + " … " + thought[-_CHARACTERS // 2 :]
    text = Text(thought, style="dim").append(
        f" → {printable(one.answer) or units.NONE}", style="not dim"
    )
    return text.append(f"  [{printable(one.error)}]", style="yellow") if one.error else text
