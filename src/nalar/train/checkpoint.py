"""A checkpoint is a Hugging Face folder with our training state beside it; it appears whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from nalar.config import UserError
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
    """Write everything into a sibling folder, then rename it. UserError where the disk is full."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / STATE).mkdir(parents=True)
        save_model(model, partial, token_ids=token_ids)
        save_tokenizer(partial)
        (partial / STATE / "progress.json").write_text(json.dumps(progress, indent=2) + "\n")
        if optimizer is not None:
            save_file(optimizer.state_tensors(), partial / STATE / "optimizer.safetensors")
        for path in partial.rglob("*"):
            if path.is_file():
                _flush(path)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            at=str(folder),
            got=f"{error.strerror or error} while saving",
            want="room for a checkpoint; earlier ones are untouched",
            hint="free some space, then go on with --resume",
        ) from error


def load_checkpoint(folder: Path) -> Resumed:
    """The model and the progress of a checkpoint; the optimizer takes its state by `load_optimizer`."""
    path = folder / STATE / "progress.json"
    if not path.is_file():
        raise UserError(
            at=str(folder), got="no training state", want="a checkpoint that a run has saved"
        )
    return Resumed(load_model(folder), json.loads(path.read_text()))


def load_optimizer(folder: Path, optimizer: MuonClip) -> None:
    """Give an optimizer the state that it had when the checkpoint was saved."""
    optimizer.load_state_tensors(load_file(folder / STATE / "optimizer.safetensors"))


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
