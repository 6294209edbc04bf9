"""A checkpoint is a Hugging Face folder with our training state beside it; it appears whole or not at all."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nalar.config import UserError
from nalar.disk import decode, replace_dir
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, save_model
from nalar.optim.muonclip import MuonClip

STATE = "state"


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint gives back."""

    model: Transformer
    progress: dict[str, Any]
    """What `save_checkpoint` was given, JSON."""


def save_checkpoint(
    folder: Path,
    model: Transformer,
    optimizer: MuonClip | None,
    progress: dict[str, Any],
    *,
    token_ids: dict[str, int],
    save_tokenizer: Callable[[Path], None],
) -> None:
    """Write everything, or nothing: a crash or a full disk (UserError) leaves what was there."""
    with replace_dir(folder) as partial:
        save_model(model, partial, token_ids=token_ids)
        save_tokenizer(partial)
        (partial / STATE).mkdir()
        (partial / STATE / "progress.json").write_text(json.dumps(progress, indent=2) + "\n")
        if optimizer is not None:
            save_file(optimizer.state_tensors(), partial / STATE / "optimizer.safetensors")


def load_checkpoint(folder: Path) -> Resumed:
    """The model and the progress of a checkpoint; the optimizer takes its state by `load_optimizer`."""
    path = folder / STATE / "progress.json"
    if not path.is_file():
        raise UserError(
            at=str(folder), got="no training state", want="a checkpoint that a run has saved"
        )
    progress = decode(path.read_bytes())
    if progress is None or not isinstance(progress.get("step"), int):
        raise UserError(
            at=str(path), got="no step that can be read", want="a file as nalar wrote it"
        )
    return Resumed(load_model(folder), progress)


def load_optimizer(folder: Path, optimizer: MuonClip) -> None:
    """Give an optimizer the state that it had when the checkpoint was saved."""
    path = folder / STATE / "optimizer.safetensors"
    try:
        optimizer.load_state_tensors(load_file(path))
    except (SafetensorError, KeyError, RuntimeError, FileNotFoundError) as error:
        raise UserError(
            at=str(path), got=str(error), want="the state of this run's optimizer"
        ) from error
