"""`nalar eval`: a model on held-out problems."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field

from nalar.cli import flags
from nalar.cli.choice import chosen_model, evals_of
from nalar.cli.output import SCHEMA_VERSION, Output
from nalar.cli.summary import results_table
from nalar.config import UserError
from nalar.evals.config import EvalConfig
from nalar.evals.results import TaskResult
from nalar.pipeline.config import TaskRunConfig
from nalar.pipeline.tasks import open_as_set
from nalar.sandbox.config import ToolsConfig
from nalar.tasks.problem import Split, Task
from nalar.tasks.registry import refuse_unknown_task
from nalar.tasks.text import TextProblems


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure RUN's model: pass@1, pass@k and majority@k with 95% intervals over problems.

    Try, with a name that `nalar runs list` shows:

    nalar eval zero-cpu-1 --task countdown --problems 50 --json
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run's folder (a name under runs/, or a path), or a folder that is a model."""
    task: tuple[str, ...] = ()
    """Ids with settings such as `,num_numbers=4`, .jsonl files, .py files (docs/tasks.md). None: the run's own."""
    problems: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Distinct problems a task, fewer where the split has fewer. None: as many as the run asks itself."""
    k: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Samples a problem. None: the run's own."""
    temperature: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """0: greedy. None: the run's own."""
    max_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Cap on a response. None: the run's own."""
    greedy: bool = False
    """Short for --temperature 0 --k 1."""
    thinking: Literal["on", "off"] | None = None
    """off: ask with the thought closed, and count replies that think all the same. None: the run's own."""
    thinking_budget: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens of a thought at most: then it is closed, and the answer follows. None: the run's own."""
    split: Split = "test"
    """Problems to ask: choose settings on valid, and read test once."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Sets the problems and the samples. None: those of the run's own evaluation."""
    no_tools: bool = False
    """Leave calls of tools unanswered, where the run has tools: what the model can do in its head."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


class EvalDocument(BaseModel):
    """One key for each task measured, as it was asked for, in the form of `results.after` of report.json."""

    model_config = ConfigDict(extra="allow")
    schema_version: int = Field(default=SCHEMA_VERSION)


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    asked = flags.parse(Eval, flags.gathered(args, "--task"), verb="eval")
    for word in asked.task:
        refuse_unknown_task(word, at="--task")
    folder, run_config = chosen_model(asked.run)
    own = evals_of(run_config)
    tools = run_config.tools if isinstance(run_config, TaskRunConfig) else ToolsConfig()
    tools = ToolsConfig() if asked.no_tools else tools
    config = _config(asked, own)
    tasks = {word: open_as_set(word, run_config, at="--task") for word in config.tasks}
    from nalar.pipeline.sampler import load_sampler, measure  # imports torch

    sampler = load_sampler(folder, run_config)
    seed = {} if asked.seed is None else {"seed": asked.seed}
    results: dict[str, TaskResult] = {}
    for name in config.tasks:
        what = f"up to {config.problems} problems of the {asked.split} split × {config.k} samples"
        out.text(f"{name}: {what}{_of_file(tasks[name], asked.split)}")
        results[name] = measure(
            sampler, tasks[name], config, split=asked.split, tools=tools, **seed
        )
    out.text(results_table(results))
    out.document(EvalDocument.model_validate(results))
    return 0


def _of_file(task: Task, split: Split) -> str:
    """Of a file of problems, how many it has: without a setting most of them are left to training."""
    if not isinstance(task, TextProblems):
        return ""
    found, every = len(task.all_of(split)), sum(len(task.all_of(one)) for one in task.splits)
    more = "" if found == every else "; split=test behind the file's name asks all of them"
    return f" (the file has {found} of this split, {every} in all{more})"


def _config(asked: Eval, own: EvalConfig) -> EvalConfig:
    """The run's own settings with what was asked for in their place."""
    if asked.temperature is not None and not 0 <= asked.temperature < float("inf"):
        raise UserError(at="--temperature", got=str(asked.temperature), want="0 (greedy) or more")
    if asked.seed is not None and asked.seed < 0:
        raise UserError(at="--seed", got=str(asked.seed), want="0 or more")
    if asked.thinking_budget is not None and asked.thinking_budget < 0:
        raise UserError(at="--thinking-budget", got=str(asked.thinking_budget), want="0 or more")
    fields = ("problems", "k", "temperature", "max_tokens", "thinking", "thinking_budget")
    given = {name: value for name in fields if (value := getattr(asked, name)) is not None}
    if asked.thinking == "off":
        given.setdefault("thinking_budget", None)  # the run's own, if it has one
    greedy = {"k": 1, "temperature": 0.0} if asked.greedy else {}
    tasks = {"tasks": tuple(dict.fromkeys(asked.task)) or own.tasks}
    return EvalConfig(**(own.model_dump() | tasks | given | greedy))
