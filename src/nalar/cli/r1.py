"""`nalar r1`: the whole R1 recipe, stage by stage."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nalar.cli import flags
from nalar.cli.choice import (
    free_run_path,
    model_folder,
    open_run,
    recipe_first,
    run_path,
    stored_config,
)
from nalar.cli.output import Output
from nalar.cli.overrides import checked, overridden
from nalar.cli.r1_drive import R1Job, drive, show_plan
from nalar.cli.start import RunFlags, resumed_run
from nalar.config import UserError, lookup, refuse_change
from nalar.pipeline.r1_config import R1Config
from nalar.plan.published import PUBLISHED
from nalar.recipes.r1 import PROBLEMS, R1_RECIPES
from nalar.run import refuse_occupied

DEFAULT_RECIPE = "r1-cpu"
_Int = Annotated[int | None, tyro.conf.arg(metavar="INT")]
_Name = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
_Folder = Annotated[str | None, tyro.conf.arg(metavar="FOLDER")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class R1(RunFlags):
    """From random weights to R1: pretrain, pure RL, cold start, RL, rejection sampling, fine-tuning, RL, distillation.

    Each stage is a run in RUN/stages/STAGE; what is done is skipped, and each model is measured. Ctrl-C finishes the
    step, saves, and says how to go on. docs/r1.md says what each stage does.

    Try (about a minute on two cores):

    nalar r1 r1-tiny --run tiny

    nalar r1 r1-literal --dry-run
    """

    recipe: str = DEFAULT_RECIPE
    """Or as the first word: r1-cpu, r1-tiny, r1-from-hf, r1-literal."""
    from_: Annotated[_Name, tyro.conf.arg(name="from", metavar="STAGE")] = None
    """The first stage to do, where those before it are done. None: the first that the recipe has."""
    to: Annotated[_Name, tyro.conf.arg(metavar="STAGE")] = None
    """The last stage to do. None: the last that the recipe has."""
    base: _Folder = None
    """A folder or a run whose model all begins with, in place of pretraining one."""
    student: _Folder = None
    """A folder or a run whose model is distilled into, in place of pretraining one; it needs the base's tokenizer."""
    problems: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE")] = ()
    """Your own problems as JSONL (docs/tasks.md), for recipes that bring none."""
    full: bool = False
    """Train all weights where the recipe trains adapters of low rank."""
    seed: _Int = None
    """Sets weights, corpus, prompts and samples; each stage has one of its own from it. None: the recipe's."""
    threads: _Int = None
    """CPU threads. None: the recipe's."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """None: the recipe's."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """None: the recipe's."""
    usd_per_hour: Annotated[float | None, tyro.conf.arg(metavar="USD")] = None
    """Price of the machine. None: the recipe's."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Any setting of any stage, by its dotted name: rl1.rl.steps=50, sft.lr=1e-3, distil=null. --dry-run shows all."""


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    words = flags.gathered(flags.gathered(recipe_first(args), "--set"), "--problems")
    asked = flags.parse(R1, words, verb="r1", usage="[RECIPE]", default=R1())
    name = resumed_run(words)
    if asked.resume and name is None:
        raise UserError(
            at="nalar r1 --resume",
            got="no --run",
            want="the run to go on with",
            hint="`nalar runs list` shows the runs there are",
        )
    if name is not None and asked.resume:
        path = open_run(name).path
        config = _going_on(asked, words, name)
    else:
        config = configured(asked, lookup(asked.recipe, R1_RECIPES, at="recipe")())
        path = free_run_path(config.recipe) if asked.run is None else run_path(asked.run)
        refuse_occupied(path)
    job = R1Job(
        config=config,
        path=path,
        args=tuple(args),
        first=asked.from_,
        last=asked.to,
        is_new=not asked.resume,
        is_named=asked.run is not None,
    )
    return show_plan(job, out) if asked.dry_run else drive(job, out)


def _going_on(asked: R1, words: Sequence[str], name: str) -> R1Config:
    """The run's own config; UserError where flags ask for another."""
    found = open_run(name)
    stored = stored_config(found, R1Config)
    begun = stored
    if (recipe := flags.peek(words, "--recipe")) is not None:
        begun = lookup(recipe, R1_RECIPES, at="recipe")()
    flagged = configured(asked, begun)
    refuse_change(flagged.model_dump(mode="json"), stored.model_dump(mode="json"), at=found.path)
    return stored


def configured(asked: R1, config: R1Config) -> R1Config:
    """A recipe with what the flags say. UserError where that cannot work."""
    document = config.model_dump(mode="json")
    for field in ("seed", "threads", "device", "dtype"):
        if (value := getattr(asked, field)) is not None:
            document[field] = value
    if asked.usd_per_hour is not None:
        document["price"]["usd_per_hour"] = asked.usd_per_hour
    if asked.base is not None:
        document |= {"base": _folder(asked.base), "pretrain": None}
    if asked.student is not None:
        document |= {"student_base": _folder(asked.student), "student": None}
    if asked.problems:
        document = _with_problems(document, asked.problems)
    if asked.full:
        document = _without_adapters(document)
    return overridden(checked(R1Config, document, ()), asked.set)


def _folder(name: str) -> str:
    """A published name is good for --dry-run, where no folder of that name is here."""
    is_published = name in PUBLISHED and not Path(name).exists()
    return name if is_published else str(model_folder(name))


def _with_problems(document: dict[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """With the user's files wherever the recipe has the name that stands for them."""
    if _replaced(document, ()) == document:
        raise UserError(
            at="--problems",
            got=", ".join(files),
            want="a recipe that asks for problems: r1-from-hf or r1-literal",
            hint="--set zero.rl.tasks=..., and so on, in others",
        )
    changed: dict[str, Any] = _replaced(document, files)
    return changed


def _replaced(value: Any, files: Sequence[str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(inner, files) for key, inner in value.items()}
    if isinstance(value, list):
        own = [[*files] if item == PROBLEMS else [_replaced(item, files)] for item in value]
        return [item for items in own for item in items]
    return value


def _without_adapters(document: dict[str, Any]) -> dict[str, Any]:
    return {
        key: (inner | {"lora": None}) if isinstance(inner, dict) and "lora" in inner else inner
        for key, inner in document.items()
    }
