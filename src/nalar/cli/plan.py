"""`nalar plan`: what a recipe will take, or how large a model is.

A published model is answered for at once: what a recipe needs is imported only for a recipe.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from nalar.cli import flags
from nalar.cli.output import Document, Output
from nalar.cli.sizes import sizes_lines, sizes_table
from nalar.config import ConfigError, UserError, nearest
from nalar.disk import decode
from nalar.model.config import ModelConfig
from nalar.plan.published import PUBLISHED
from nalar.plan.sizes import Sizes, sizes_of

DEFAULT_CONTEXT = 4096
_LARGEST, _MOST_LAYERS = 2**32, 2**14
"""Beyond all use. What is counted from numbers up to these fits a float, and layer by layer in a moment."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanModel:
    """Parameters, operations, bytes of weights and of the cache, by arithmetic.

    Try:

    nalar plan kimi-k2 --context 32768
    """

    context: int = DEFAULT_CONTEXT
    """Length of the sequences, in tokens, that operations are counted for."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


class SizesDocument(Sizes, Document):
    """What `plan` prints of a model."""

    name: str
    """As it was asked for."""
    source: str
    """The repository on huggingface.co, or the file, that the figures follow from."""


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    name, rest = flags.leading_word(args)
    if name is not None and name in PUBLISHED:
        published = PUBLISHED[name]
        return _show(name, published.source, published.config, rest, out)
    if name == "sft":
        from nalar.cli import sft

        return sft.run([*rest, "--dry-run"])
    from nalar.recipes.r1 import R1_RECIPES
    from nalar.recipes.registry import RECIPES

    if name is not None and name in R1_RECIPES:
        from nalar.cli import r1

        return r1.run([name, *rest, "--dry-run"])
    if name is None or name in RECIPES:
        from nalar.cli.plan_recipe import plan_recipe

        return plan_recipe(args, out)
    path = _config_path(name, [*RECIPES, *R1_RECIPES])
    return _show(name, str(path), _read(path), rest, out)


def _show(name: str, source: str, config: ModelConfig, rest: Sequence[str], out: Output) -> int:
    asked = flags.parse(PlanModel, rest, verb=f"plan {name}")
    if not 1 <= asked.context <= _LARGEST:
        want = f"a number of tokens from 1 to {_LARGEST}"
        raise UserError(at="--context", got=str(asked.context), want=want)
    sizes = sizes_of(config, context_tokens=asked.context)
    out.text(f"{name}: {sizes.model_type}, {config.num_hidden_layers} layers, from {source}\n")
    out.text(sizes_table(sizes))
    out.text("")
    for line in sizes_lines(sizes):
        out.text(line)
    out.document(SizesDocument(name=name, source=source, **dict(sizes)))
    return 0


def _config_path(name: str, recipes: Iterable[str]) -> Path:
    """The config.json of a folder or of a run's model; UserError that names the nearest where there is neither."""
    from nalar.cli.choice import open_run, run_path

    path = run_path(name)
    if not path.is_dir():
        known = [*recipes, *PUBLISHED]
        close = nearest(name, known)
        raise UserError(
            at="nalar plan",
            got=f"{name!r}, which is no folder and no known name",
            want=f"a folder with a config.json, a run, or one of {', '.join(known)}",
            hint=close and f"did you mean {close!r}?",
        )
    if (path / "run.json").exists():
        path = open_run(name).model_dir()
    return path / "config.json"


def _read(path: Path) -> ModelConfig:
    """The model that a published config describes; UserError names the file and the field."""
    from nalar.model.families.registry import family_of

    try:
        published = decode(path.read_bytes())
    except FileNotFoundError as error:
        want = "a model's folder, which has a config.json"
        raise UserError(at=str(path.parent), got=f"no {path.name}", want=want) from error
    if published is None:
        raise UserError(
            at=str(path), got="text that is not a JSON object", want="a model's config as JSON"
        )
    try:
        config = family_of(published).read_config(published)
        _refuse_endless(config)
        return config
    except ConfigError as error:
        field = error.at.removeprefix(f"{path.name} ")
        raise ConfigError(
            at=f"{path}: {field}", got=error.got, want=error.want, hint=error.hint
        ) from error


def _refuse_endless(config: ModelConfig) -> None:
    """ConfigError where a number is too large to count with."""
    for name, value in config:
        most = _LARGEST
        if name in ("num_hidden_layers", "num_nextn_predict_layers"):
            most = _MOST_LAYERS
        if isinstance(value, int) and value > most:
            raise ConfigError(at=name, got="a number beyond all use", want=f"at most {most}")
