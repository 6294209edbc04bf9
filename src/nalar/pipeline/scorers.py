"""The models that score in a run of RL: found, refused where they do not fit, loaded."""

from pathlib import Path

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.model.config import ModelConfig
from nalar.model.folder import CONFIG
from nalar.model.weights import read_config
from nalar.pipeline.config import TaskRunConfig
from nalar.pipeline.place import Place
from nalar.rl.config import ScoredBy
from nalar.rl.reward_model import RewardModel
from nalar.rl.scorers import Scorers, refuse_foreign_tokenizer


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
