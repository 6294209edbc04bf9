"""The models that score in a run of RL: found, refused where they do not fit, kept on record, loaded."""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ValidationError

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.model.config import ModelConfig
from nalar.model.folder import CONFIG
from nalar.model.shards import weight_files
from nalar.model.weights import read_config
from nalar.pipeline.config import TaskRunConfig
from nalar.pipeline.place import Place
from nalar.rl.config import ScoredBy
from nalar.rl.reward_model import RewardModel
from nalar.rl.scorers import Scorers, refuse_foreign_tokenizer
from nalar.run import Run

FILE = "reward_models.json"


class ScorersRecord(BaseModel):
    """`reward_models.json`: the models that a run's rewards come from. Only gains keys."""

    schema_version: int = 1
    models: dict[ScoredBy, str]
    """SHA-256 over config, weights and tokenizer."""


def model_of(name: ScoredBy, given: str) -> Path:
    """The folder of a model that scores, given by itself or by its run; UserError where it is none."""
    path = Path(given).expanduser()
    folder = path / "model" if (path / "run.json").is_file() else path
    if not (folder / CONFIG).is_file():
        raise UserError(
            at=f"rl.reward.{name}_model",
            got=f"{given}, which has no model",
            want="a run of `nalar reward`, or the folder of its model",
        )
    return folder


def read_scorers(config: TaskRunConfig, tokenizer: Tokenizer) -> list[ModelConfig]:
    """Of every model that scores. UserError where one does not, has another tokenizer than the policy, or lacks
    positions. Weights are not read."""
    found: list[ModelConfig] = []
    if config.rl.rollout.debug == "train_only":  # rewards are those that were saved
        return found
    for name, given in config.rl.reward.models.items():
        folder = model_of(name, given)
        model = read_config(folder)
        if model.num_labels is None:
            raise UserError(
                at=f"rl.reward.{name}_model",
                got=f"{folder}, a model that predicts tokens",
                want="a model that scores",
                hint=f"nalar reward --kind {name} --model {given}",
            )
        refuse_foreign_tokenizer(name, Tokenizer.load(folder), tokenizer)
        longest = config.max_prompt_tokens + config.rl.max_tokens
        if longest > model.max_position_embeddings:
            raise UserError(
                at=f"rl.reward.{name}_model",
                got=f"max_position_embeddings={model.max_position_embeddings}",
                want=f"room for a prompt of max_prompt_tokens={config.max_prompt_tokens} "
                f"and a response of rl.max_tokens={config.rl.max_tokens}",
            )
        found.append(model)
    return found


def keep_scorers(run: Run, config: TaskRunConfig) -> None:
    """Write down which models a run's rewards come from. UserError where they are not those that it began with."""
    if not config.rl.reward.models or config.rl.rollout.debug == "train_only":
        return
    digests = {
        name: _digest(model_of(name, given)) for name, given in config.rl.reward.models.items()
    }
    path = run.path / FILE
    if not path.exists():
        run.write_json(FILE, ScorersRecord(models=digests).model_dump())
        return
    try:
        known = ScorersRecord.model_validate(run.read_json(FILE)).models
    except ValidationError as error:
        raise UserError(
            at=str(path), got="a broken file", want="a file as nalar wrote it"
        ) from error
    for name, digest in digests.items():
        if known.get(name) != digest:
            raise UserError(
                at=f"rl.reward.{name}_model {config.rl.reward.models[name]}",
                got="another model than the run began with",
                want="the same, so that it goes on as if it had never stopped",
                hint="put it back as it was, or start a new run",
            )


def load_scorers(config: TaskRunConfig, tokenizer: Tokenizer, place: Place) -> Scorers | None:
    """On the policy's device, in its dtype. None: no model scores."""
    if not config.rl.reward.models or config.rl.rollout.debug == "train_only":
        return None
    read_scorers(config, tokenizer)
    models = {
        name: RewardModel.load(model_of(name, given), device=place.device, dtype=place.dtype)
        for name, given in config.rl.reward.models.items()
    }
    return Scorers(models, tokenizer)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in sorted([CONFIG, "tokenizer.json", *weight_files(folder)]):
        with (folder / name).open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
