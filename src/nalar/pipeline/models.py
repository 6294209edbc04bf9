"""Models that a run does not keep and needs whenever it goes on: the base of its adapters, its teacher, its scorers."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from nalar.config import UserError
from nalar.disk import encode
from nalar.model.folder import CONFIG
from nalar.model.shards import weight_files
from nalar.pipeline.adapting import base_of
from nalar.pipeline.config import RunConfig, TaskRunConfig
from nalar.pipeline.scorers import model_of
from nalar.pipeline.state import State
from nalar.run import Run

MODELS_FILE = "models.json"


class ModelsRecord(BaseModel):
    """`models.json`: what such a model was when the run began. Only gains keys."""

    schema_version: int = 1
    models: dict[str, str]
    """A digest of config, weights and tokenizer, by the path that the run's config names."""


def needed(config: RunConfig) -> dict[str, Path]:
    """Folders by the setting that names them."""
    found: dict[str, Path] = {}
    if (base := base_of(config)) is not None:
        found["model"] = base
    if isinstance(config, TaskRunConfig) and config.rl.distil.teacher is not None:
        found["rl.distil.teacher"] = Path(config.rl.distil.teacher)
    if isinstance(config, TaskRunConfig) and config.rl.rollout.debug != "train_only":
        for name, given in config.rl.reward.models.items():
            found[f"rl.reward.{name}_model"] = model_of(name, given)
    return found


def keep_models(run: Run, config: RunConfig, stage: str) -> None:
    """Write down what a run's models are. UserError where one is not what the run began with.

    stage: the one that needs them; once it is done they may go.
    """
    if stage in State.read(run).done:
        return
    models = {str(folder): digest(folder, at) for at, folder in needed(config).items()}
    if not models:
        return
    path = run.path / MODELS_FILE
    if not path.exists():
        run.write_json(MODELS_FILE, ModelsRecord(models=models).model_dump())
        return
    try:
        known = ModelsRecord.model_validate(run.read_json(MODELS_FILE)).models
    except ValidationError as error:
        raise UserError(
            at=str(path), got="a broken file", want="a file as nalar wrote it"
        ) from error
    _refuse_other(models, known)


def digest(folder: Path, at: str) -> str:
    """SHA-256 over the files that say what a model computes. UserError that names the first that is not there."""
    whole: list[tuple[str, str]] = []
    for name in (CONFIG, "tokenizer.json", *weight_files(folder)):
        path = folder / name
        try:
            with path.open("rb") as file:
                whole.append((name, hashlib.file_digest(file, "sha256").hexdigest()))
        except OSError as error:
            raise UserError(
                at=f"{at} {folder}",
                got=f"{name}: {error.strerror or error}",
                want="the model that the run needs whenever it goes on",
                hint="relative names hold in the folder that the run was started in",
            ) from error
    return hashlib.sha256(encode(dict(whole))).hexdigest()


def _refuse_other(models: Mapping[str, str], known: Mapping[str, str]) -> None:
    for name, found in models.items():
        # Under another name only the digest tells: the folders around it may have moved.
        is_same = known[name] == found if name in known else found in known.values()
        if not is_same:
            raise UserError(
                at=name,
                got="another model than the run began with",
                want="the same, so that it goes on as if it had never stopped",
                hint="put it back as it was, or start a new run",
            )
