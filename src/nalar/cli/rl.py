"""`nalar rl`: RL from a model that is there, or from a run's pretrained base to its report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from nalar.cli import flags
from nalar.cli.choice import kind_of, model_folder, open_run, stored_config
from nalar.cli.drive import Job, drive, show_plan
from nalar.cli.output import Output
from nalar.cli.start import RunFlags, proceed, resumed_run, with_preset, with_scorers
from nalar.config import UserError
from nalar.pipeline.config import RlRunConfig, ZeroConfig
from nalar.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rl(RunFlags):
    """RL from MODEL, a run or a folder, on tasks: evaluate, RL, evaluate again, report.

    Or go on with RUN, one of this verb or one that has a pretrained base: `nalar rl RUN`, where --force goes on even
    if the probe says that the base is not ready.

    Try, after `nalar pretrain zero-tiny --run base`:

    nalar rl --model base --task chain_sum,min_terms=2,max_terms=3 --run sums --rl.steps 20

    nalar rl base
    """

    config: Annotated[RlRunConfig, tyro.conf.arg(name="")]
    task: tuple[str, ...] = ()
    """Ids with settings such as `,num_numbers=4`, .jsonl files, .py files (docs/tasks.md): trained on and measured.
    Short for --rl.tasks and --evals.tasks, which may differ."""
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """A published algorithm: it sets the defaults of --rl.…, which flags change. docs/rl.md has the names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoOn:
    """Go on with RUN: its base is evaluated, RL, evaluated again, reported. What was cut off is resumed.

    Try, after `nalar pretrain zero-tiny --run base`:

    nalar rl base
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run's folder: a name under runs/, or a path."""
    force: bool = False
    """Go on even where the probe says that the base is not ready."""
    dry_run: bool = False
    """Print the run's config, parameters, memory, hours and price; write nothing."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


def run(args: Sequence[str]) -> int:
    word, _ = flags.leading_word(args)
    return _begin(args) if word is None else _go_on(args)


def _begin(args: Sequence[str]) -> int:
    words = flags.gathered(args, "--task")
    name = resumed_run(words)
    config = stored_config(open_run(name), RlRunConfig) if name else RlRunConfig(model="")
    default = Rl(config=with_preset(config, words))
    asked = flags.parse(Rl, words, verb="rl", usage="[RUN]", default=default)
    if not asked.config.model:
        raise UserError(
            at="--model",
            got="no model",
            want="a run, or a folder with a model and its tokenizer",
            hint="`nalar rl RUN` goes on with a run that has a pretrained base",
        )
    config = _with_tasks(asked, words)
    if flags.peek(words, "--model") is not None:
        config = config.model_copy(update={"model": str(model_folder(config.model))})
    config = with_scorers(config, words)
    if flags.peek(words, "--rl.distil.teacher") is not None and config.rl.distil.teacher:
        config = _with_teacher(config, model_folder(config.rl.distil.teacher))
    return proceed("rl", asked, config, args)


def _with_tasks(asked: Rl, words: Sequence[str]) -> RlRunConfig:
    """The config with what --task says; UserError where no task is named, for no task is everybody's."""
    config = asked.config
    if not asked.task:
        if asked.resume or flags.peek(words, "--rl.tasks") is not None:
            return config
        raise UserError(
            at="--task",
            got="no task",
            want="an id, a .jsonl file or a .py file",
            hint="--task countdown; docs/tasks.md lists what there is",
        )
    evals = config.evals
    if flags.peek(words, "--evals.tasks") is None:
        evals = evals.model_copy(update={"tasks": tuple(dict.fromkeys(asked.task))})
    rl = config.rl.model_copy(update={"tasks": asked.task})
    return RlRunConfig.model_validate(
        config.model_copy(update={"rl": rl, "evals": evals}).model_dump()
    )


def _with_teacher(config: RlRunConfig, folder: Path) -> RlRunConfig:
    """With the teacher's folder as it is now: a run's link may move on."""
    distil = config.rl.distil.model_copy(update={"teacher": str(folder)})
    return config.model_copy(update={"rl": config.rl.model_copy(update={"distil": distil})})


def _go_on(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    asked = _asked_to_go_on(args)
    found = open_run(asked.run)
    config: ZeroConfig | RlRunConfig
    if kind_of(found) is RlRunConfig:
        config = stored_config(found, RlRunConfig)
    else:
        config = stored_config(found, ZeroConfig)
        _refuse_without_base(found)
    if asked.dry_run:
        return show_plan(config, found.path, out)
    job = Job(
        verb="rl",
        config=config,
        path=found.path,
        args=tuple(args),
        is_new=False,
        force=asked.force,
    )
    return drive(job, out)


def _asked_to_go_on(args: Sequence[str]) -> GoOn:
    """Not in the words of `nalar rl --help`, which lists the flags of a run that begins."""
    try:
        return flags.parse(GoOn, args, verb="rl")
    except UserError as error:
        raise UserError(
            at="nalar rl RUN",
            got=error.got,
            want="--force, --dry-run, --json or none: a run goes on by its own config",
            hint="other settings are another run: nalar rl --model MODEL --task TASK --run NAME",
        ) from None


def _refuse_without_base(found: Run) -> None:
    if found.stage_total("pretrain") is None or not (found.path / "model").exists():
        raise UserError(
            at=str(found.path),
            got="a run without a pretrained base",
            want="a run that has finished pretraining",
            hint=f"nalar pretrain --run {found.path} --resume",
        )
