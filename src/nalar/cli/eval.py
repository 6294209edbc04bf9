"""`nalar eval`: a model on held-out problems."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro
from pydantic import BaseModel, ConfigDict, Field

from nalar.cli import flags
from nalar.cli.choice import model_folder
from nalar.cli.output import SCHEMA_VERSION, Output
from nalar.cli.summary import results_table
from nalar.config import UserError, lookup
from nalar.evals.config import EvalConfig
from nalar.tasks.problem import Split
from nalar.tasks.registry import TASKS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure RUN's model: pass@1, pass@k and majority@k with 95% intervals over problems.

    Try, with a name that `nalar runs list` shows:

    nalar eval zero-cpu-1 --task countdown --problems 50 --json
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run's folder (a name under runs/, or a path), or a folder that is a model."""
    task: tuple[str, ...] = tuple(TASKS)
    """Task ids."""
    problems: int = EvalConfig().problems
    """Distinct problems a task, fewer where the split has fewer."""
    k: int = EvalConfig().k
    """Samples a problem."""
    temperature: float = EvalConfig().temperature
    """0: greedy."""
    max_tokens: int = EvalConfig().max_tokens
    """Cap on a response."""
    greedy: bool = False
    """Short for --temperature 0 --k 1."""
    split: Split = "test"
    """Problems to ask: choose settings on valid, and read test once."""
    seed: int = 0
    """Sets the problems and the samples."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


class EvalDocument(BaseModel):
    """One key for each task measured, in the form of `results.after` of report.json."""

    model_config = ConfigDict(extra="allow")
    schema_version: int = Field(default=SCHEMA_VERSION)


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    asked = flags.parse(Eval, args, verb="eval")
    for name in asked.task:
        lookup(name, TASKS, at="--task")
    folder = model_folder(asked.run)
    config = _config(asked)
    from nalar.pipeline.sampler import load_sampler, measure  # imports torch

    sampler, results = load_sampler(folder), {}
    for name in config.tasks:
        out.text(
            f"{name}: {config.problems} problems of the {asked.split} split, {config.k} samples each"
        )
        results[name] = measure(sampler, TASKS[name](), config, split=asked.split, seed=asked.seed)
    out.text(results_table(results))
    out.document(EvalDocument.model_validate(results))
    return 0


def _config(asked: Eval) -> EvalConfig:
    """What to measure. The engine checks the temperature only when it samples: too late to say so kindly."""
    if asked.temperature < 0:
        raise UserError(at="--temperature", got=str(asked.temperature), want="0 (greedy) or more")
    return EvalConfig(
        tasks=tuple(dict.fromkeys(asked.task)),
        problems=asked.problems,
        k=1 if asked.greedy else asked.k,
        temperature=0.0 if asked.greedy else asked.temperature,
        max_tokens=asked.max_tokens,
    )
