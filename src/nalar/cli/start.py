"""What verbs that train share: flags over a config, and a run's folder, new or to go on with."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from nalar.cli import flags
from nalar.cli.choice import (
    free_run_path,
    model_folder,
    open_run,
    recipe,
    recipe_first,
    run_path,
    stored_config,
)
from nalar.cli.drive import AnyConfig, Job, Until, drive, go_on_config, show_plan
from nalar.cli.output import Output
from nalar.config import UserError, lookup
from nalar.pipeline.config import TaskRunConfig, ZeroConfig
from nalar.rl.presets import PRESETS
from nalar.run import refuse_occupied

DEFAULT_RECIPE = "zero-cpu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFlags:
    """The flags of a verb that trains; `config` is each verb's own."""

    run: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The run's folder: a name under runs/, or a path. None: runs/RECIPE-N, the next that is free."""
    resume: bool = False
    """Go on with the run that --run names, by its own config."""
    dry_run: bool = False
    """Print the resolved config, parameters, memory, hours and price; write nothing."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeFlags(RunFlags):
    """The flags of a verb that starts a recipe."""

    config: Annotated[ZeroConfig, tyro.conf.arg(name="")]
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """A published algorithm of RL: it sets the defaults of --rl.…, which flags change. docs/rl.md has the names."""
    force: bool = False
    """Go on to RL even where the probe says that the base is not ready."""


F = TypeVar("F", bound=RecipeFlags)


def start(verb: str, cls: type[F], args: Sequence[str], *, until: Until) -> int:
    """Parse, check, run. A recipe's name may stand first, or behind --recipe."""
    words = recipe_first(args)
    asked = flags.parse(
        cls, words, verb=verb, usage="[RECIPE]", default=cls(config=_defaults(words))
    )
    config = with_scorers(asked.config, words)
    return proceed(verb, asked, config, args, until=until, force=asked.force)


def proceed(verb: str, asked: RunFlags, config: AnyConfig, args: Sequence[str], **how: Any) -> int:
    """Show what was asked for, or do it. how: more of the job."""
    out = Output(json="--json" in args)
    if asked.resume:
        config, path = _resumed(verb, asked, config)
    else:
        path = free_run_path(config.recipe) if asked.run is None else run_path(asked.run)
        refuse_occupied(path)
    if asked.dry_run:
        return show_plan(config, path, out)
    job = Job(
        verb=verb,
        config=config,
        path=path,
        args=tuple(args),
        is_new=not asked.resume,
        is_named=asked.run is not None,
        **how,
    )
    return drive(job, out)


def resumed_run(words: Sequence[str]) -> str | None:
    """The run that is to go on, by words that are not parsed yet: its config is the default of all flags."""
    return flags.peek(words, "--run") if "--resume" in words else None


def _defaults(words: Sequence[str]) -> ZeroConfig:
    """What flags change: the config of the run that goes on, or of the recipe."""
    if name := resumed_run(words):
        return with_preset(stored_config(open_run(name), ZeroConfig), words)
    chosen = flags.peek(words, "--recipe")
    return with_preset(recipe(DEFAULT_RECIPE if chosen is None else chosen), words)


T = TypeVar("T", bound=TaskRunConfig)


def with_preset(config: T, words: Sequence[str]) -> T:
    """The config with RL as --preset has it, where that stands among the words; ConfigError that names the nearest."""
    name = flags.peek(words, "--preset")
    if name is None:
        return config
    preset = lookup(name, PRESETS, at="--preset")
    return config.model_copy(update={"rl": preset(config.rl)})


def with_scorers(config: T, words: Sequence[str]) -> T:
    """The config with the folders of the models that score, where the words name them: by a run as `--model` does."""
    folders = {
        f"{name}_model": str(model_folder(given))
        for name, given in config.rl.reward.models.items()
        if flags.peek(words, f"--rl.reward.{name}-model") is not None
    }
    reward = config.rl.reward.model_copy(update=folders)
    return config.model_copy(update={"rl": config.rl.model_copy(update={"reward": reward})})


def _resumed(verb: str, asked: RunFlags, config: AnyConfig) -> tuple[AnyConfig, Path]:
    if asked.run is None:
        raise UserError(
            at=f"nalar {verb} --resume",
            got="no --run",
            want="the run to go on with",
            hint="`nalar runs list` shows the runs there are",
        )
    run = open_run(asked.run)
    return go_on_config(run, config), run.path
