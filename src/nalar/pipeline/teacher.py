"""The teacher of on-policy distillation: a model that gives log-probabilities of what the policy draws."""

from itertools import zip_longest
from pathlib import Path

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model
from nalar.pipeline.base import read_folder
from nalar.pipeline.config import TaskRunConfig
from nalar.pipeline.place import Place


def read_teacher(config: TaskRunConfig, tokenizer: Tokenizer) -> ModelConfig | None:
    """None: there is no teacher. UserError where it reads ids otherwise than the policy, or too few of them.

    tokenizer: the policy's.
    """
    if config.rl.distil.teacher is None:
        return None
    folder = Path(config.rl.distil.teacher)
    model, theirs = read_folder(folder)
    _refuse_other_ids(folder, theirs, tokenizer)
    longest = config.max_prompt_tokens + config.rl.max_tokens
    if model.max_position_embeddings < longest:
        raise UserError(
            at=f"rl.distil.teacher {folder}",
            got=f"max_position_embeddings {model.max_position_embeddings}",
            want=f"room for prompts of {config.max_prompt_tokens} and responses of {config.rl.max_tokens}",
            hint=f"--rl.max-tokens {model.max_position_embeddings - config.max_prompt_tokens}",
        )
    return model


def load_teacher(config: TaskRunConfig, tokenizer: Tokenizer, place: Place) -> Transformer | None:
    """The same, with its weights, frozen."""
    if read_teacher(config, tokenizer) is None:
        return None
    model = load_model(
        str(config.rl.distil.teacher), device=place.device, dtype=place.dtype, with_mtp=False
    )
    return model.requires_grad_(False).eval()


def _refuse_other_ids(folder: Path, theirs: Tokenizer, ours: Tokenizer) -> None:
    """By what every id means: how texts are cut is the policy's business alone, for ids are never cut again."""
    sizes = range(ours.vocab_size), range(theirs.vocab_size)
    for one, other in zip_longest(*sizes):
        meant = [
            "nothing" if token_id is None else repr(tokenizer.token_bytes(token_id))
            for token_id, tokenizer in ((one, ours), (other, theirs))
        ]
        if meant[0] != meant[1]:
            raise UserError(
                at=f"rl.distil.teacher {folder}",
                got=f"another tokenizer: id {one if other is None else other} means {meant[1]} to it",
                want=f"{meant[0]}, as to the model that is trained: the same ids",
                hint="a teacher that was trained from the same tokenizer",
            )
