"""Which recipe, which run, which model: what the words on the command line mean."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from nalar.cli.flags import leading_word
from nalar.config import ConfigError, UserError, lookup, nearest
from nalar.evals.config import EvalConfig
from nalar.pipeline.collect_config import CollectConfig
from nalar.pipeline.config import (
    RewardRunConfig,
    RlRunConfig,
    RunConfig,
    SftConfig,
    TaskRunConfig,
    ZeroConfig,
)
from nalar.pipeline.r1_config import PREFIX, R1Config
from nalar.recipes.registry import RECIPES
from nalar.run import Run, run_folders

RUNS = Path("runs")
_RUN_OR_MODEL = "a run, or a model's folder, which has a config.json"
C = TypeVar("C", bound=RunConfig)


def recipe(name: str) -> ZeroConfig:
    """The recipe of this name; ConfigError that names the nearest."""
    return lookup(name, RECIPES, at="recipe")()


def recipe_first(args: Sequence[str]) -> list[str]:
    """The words with the recipe, where it stands on its own, as the flag of the config's field of that name."""
    word, rest = leading_word(args)
    return rest if word is None else ["--recipe", word, *rest]


def run_path(name: str) -> Path:
    """A path as it is; a bare name that is no folder here means a run under `runs/`."""
    if not name:
        raise UserError(at="the run's name", got="no text", want="a name under runs/, or a path")
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(at=name, got="no such user", want="a folder's path") from error
    is_bare = len(path.parts) == 1 and not name.startswith("./")
    return RUNS / name if is_bare and not path.is_dir() else path


def free_run_path(stem: str) -> Path:
    """runs/<stem>-<n> for the smallest n that follows all there are."""
    taken = [p.name.removeprefix(f"{stem}-") for p in RUNS.glob(f"{stem}-*")]
    last = max((int(n) for n in taken if n.isdecimal()), default=0)
    return RUNS / f"{stem}-{last + 1}"


def open_run(name: str, want: str = "a run's folder, which has a run.json") -> Run:
    """The run of this name or path; UserError that names the nearest where there is none.

    want: what may stand there, where a folder without a run may too.
    """
    path = run_path(name)
    if not (path / "run.json").exists():
        known = [p.name for p in run_folders(RUNS)]
        close = nearest(path.name, known)
        raise UserError(
            at=str(path),
            got="a folder that is not a run" if path.is_dir() else "no such folder",
            want=want,
            hint=f"did you mean {RUNS / close}?"
            if close
            else "`nalar runs list` shows the runs there are",
        )
    return Run.open(path)


def stored_config(run: Run, kind: type[C]) -> C:
    """The config that a run was started with; UserError where it is a run of another kind."""
    config, own = run.info.config, kind_of(run)
    if own is not kind:
        raise UserError(
            at=str(run.path),
            got=_OF_KIND[own][0],
            want=_OF_KIND[kind][0],
            hint=f"nalar {_OF_KIND[own][1]} --run {run.path} --resume",
        )
    try:
        # Runs from before there was a choice of device have all been on the CPU.
        return kind.model_validate({"device": "cpu"} | config)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "config"
        raise ConfigError(
            at=f"{run.path / 'run.json'}: {field}",
            got=first["msg"],
            want="a config that this version of nalar can read",
            hint="go on with the version that started the run",
        ) from error


def kind_of(run: Run) -> type[RunConfig]:
    """Of the config that a run was started with."""
    name = str(run.info.config.get("recipe"))
    return R1Config if name.startswith(PREFIX) else _KINDS.get(name, ZeroConfig)


def evals_of(config: RunConfig | None) -> EvalConfig:
    """How a run measures its models; as usual where there is no run."""
    if isinstance(config, R1Config):
        return config.measure.evals
    return config.evals if isinstance(config, TaskRunConfig) else EvalConfig()


def model_folder(name: str) -> Path:
    """The folder of a run's model as it is now, whose link may move on; or the folder of a model itself."""
    path = run_path(name)
    if (path / "config.json").is_file() and not (path / "run.json").exists():
        return path.resolve()
    return open_run(name, want=_RUN_OR_MODEL).model_dir().resolve()


def chosen_model(name: str) -> tuple[Path, RunConfig | None]:
    """The model of a run and the run's config, or a folder that is a model itself, of which no run is known."""
    path = run_path(name)
    if (path / "config.json").is_file() and not (path / "run.json").exists():
        return path, None
    run = open_run(name, want=_RUN_OR_MODEL)
    return run.model_dir(), stored_config(run, kind_of(run))


_KINDS: Mapping[str, type[RunConfig]] = {
    "sft": SftConfig,
    "rl": RlRunConfig,
    "reward": RewardRunConfig,
    "collect": CollectConfig,
}
"""By the name in a config's `recipe`; all others are recipes."""
_OF_KIND: Mapping[type[RunConfig], tuple[str, str]] = {
    ZeroConfig: ("a run of a recipe", "demo"),
    SftConfig: ("a run of `nalar sft`", "sft"),
    RlRunConfig: ("a run of `nalar rl`", "rl"),
    RewardRunConfig: ("a run of `nalar reward`", "reward"),
    CollectConfig: ("a run of `nalar collect`", "collect"),
    R1Config: ("a run of `nalar r1`", "r1"),
}
"""What such a run is called, and the verb that goes on with it."""
