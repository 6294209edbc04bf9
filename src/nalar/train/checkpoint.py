"""A checkpoint is a Hugging Face folder with our training state beside it; it appears whole or not at all.

Of a model with adapters the weights are base and adapters folded into one, which is what every verb loads, and
`adapter/` has the adapters alone, in PEFT's format: with the base they are what training goes on from.

In `state/`: `progress.json` says where the loop was, `optimizer.safetensors` and `random.json` hold what the weights do
not, `reference.safetensors` the policy that RL is pulled towards, where there is one, `loop.json` what a loop remembers
beside (RL its unfinished rollouts), and `manifest.json` has the size and the SHA-256 of every other file, which tells a
whole checkpoint from a damaged one.
"""

import errno
import hashlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nalar.config import UserError
from nalar.disk import decode, encode, replace_dir
from nalar.model.adapter_folder import ADAPTER, load_adapted, save_adapter
from nalar.model.lora import lasting
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, read_config, save_model
from nalar.optim.muonclip import MuonClip
from nalar.train.rng import random_state

STATE = "state"
PROGRESS, OPTIMIZER, RANDOM = "progress.json", "optimizer.safetensors", "random.json"
REFERENCE = "reference.safetensors"
LOOP = "loop.json"
MANIFEST = f"{STATE}/manifest.json"


class Progress(BaseModel):
    """`state/progress.json`: where the loop was. Only gains keys."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    stage: str
    step: int
    """Steps done. Batches and problems are functions of seed and step, so this is the loader's position too."""
    is_kept: bool = False
    """The end of a slice, which newer checkpoints need not replace."""
    logs: dict[str, int]
    """Bytes of each log of the run: what stands beyond them came later."""


class _Written(BaseModel):
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    """`state/manifest.json`, by path within the checkpoint."""

    files: dict[str, _Written] = Field(min_length=1)


@dataclass(frozen=True)
class Snapshot:
    """All of a checkpoint, in memory."""

    model: Transformer
    optimizer: dict[str, Tensor] | None
    random: dict[str, Any]
    progress: Progress
    reference: dict[str, Tensor] | None = None
    loop: Mapping[str, Any] | None = None
    """JSON of the loop's own."""


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint gives back; the optimizer takes its state by `load_optimizer`."""

    folder: Path
    model: Transformer
    random: dict[str, Any]
    progress: Progress
    loop: Mapping[str, Any] | None
    """None: the loop remembered nothing of its own."""


def take_snapshot(
    model: Transformer,
    optimizer: MuonClip | None,
    progress: Progress,
    *,
    copy: bool = True,
    loop: Mapping[str, Any] | None = None,
    reference: dict[str, Tensor] | None = None,
) -> Snapshot:
    """The state of this moment; `reference` is a copy already. Without `copy` the weights are the model's own: write
    them before it trains on."""
    return Snapshot(
        model=_copied(model) if copy else model,
        optimizer=None if optimizer is None else optimizer.state_tensors(),
        random=random_state(),
        progress=progress,
        reference=reference,
        loop=loop,
    )


def save_checkpoint(
    folder: Path,
    snapshot: Snapshot,
    *,
    token_ids: dict[str, int],
    save_tokenizer: Callable[[Path], None],
) -> None:
    """Write everything, or nothing: a crash or a full disk (UserError) leaves what was there."""
    with replace_dir(folder) as partial:
        save_model(snapshot.model, partial, token_ids=token_ids)
        save_tokenizer(partial)
        if snapshot.model.adapters is not None:
            (partial / ADAPTER).mkdir()
            save_adapter(snapshot.model, partial / ADAPTER)
        state = partial / STATE
        state.mkdir()
        (state / PROGRESS).write_bytes(encode(snapshot.progress.model_dump(), indent=2) + b"\n")
        (state / RANDOM).write_bytes(encode(snapshot.random) + b"\n")
        if snapshot.loop is not None:
            (state / LOOP).write_bytes(encode(snapshot.loop) + b"\n")
        if snapshot.optimizer is not None:
            save_file(snapshot.optimizer, state / OPTIMIZER)
        if snapshot.reference is not None:
            save_file(snapshot.reference, state / REFERENCE)
        files = {
            str(path.relative_to(partial)): _Written(
                bytes=path.stat().st_size, sha256=_sha256(path)
            )
            for path in _files(partial)
        }
        manifest = _Manifest(files=files).model_dump()
        (partial / MANIFEST).write_bytes(encode(manifest, indent=2) + b"\n")


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None where every file is as it was written."""
    files = {str(path.relative_to(folder)): path for path in _files(folder)}
    if MANIFEST not in files:
        return f"{MANIFEST} is missing"
    try:
        manifest = _Manifest.model_validate(decode(files[MANIFEST].read_bytes()))
        for name, written in manifest.files.items():
            if name not in files:
                return f"{name} is missing"
            size = files[name].stat().st_size
            if size != written.bytes:
                return f"{name} has {size:,} bytes of {written.bytes:,}"
            if _sha256(files[name]) != written.sha256:
                return f"{name} is not what was written: its SHA-256 differs"
    except ValidationError:
        return f"{MANIFEST} cannot be read"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return f"{error.filename}: the disk fails to read it"
    return None


def load_checkpoint(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    base: Path | None = None,
) -> Resumed:
    """Model, progress, random state and what the loop remembered. Does not look for damage beyond what it reads.

    base: the model that the checkpoint's adapters are on; they are then put on it, to be trained on. None: the weights
    are the checkpoint's own.
    """
    progress, state = read_progress(folder), folder / STATE
    random = _read(state / RANDOM, "random state")
    loop = _read(state / LOOP, "state of the loop") if (state / LOOP).exists() else None
    if base is None:
        scores = read_config(folder).num_labels is not None
        model = load_model(folder, device=device, dtype=dtype, scores=scores)
    else:
        model = load_adapted(base, folder / ADAPTER, device=device, dtype=dtype)
    return Resumed(folder, model, random, progress, loop)


def _read(path: Path, what: str) -> dict[str, Any]:
    document = decode(path.read_bytes()) if path.is_file() else None
    if document is None:
        raise UserError(
            at=str(path), got=f"no {what} that can be read", want="a file as nalar wrote it"
        )
    return document


def read_progress(folder: Path) -> Progress:
    """Where the loop was when a checkpoint was saved."""
    path = folder / STATE / PROGRESS
    if not path.is_file():
        raise UserError(
            at=str(folder), got="no training state", want="a checkpoint that a run has saved"
        )
    try:
        return Progress.model_validate(decode(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the text"
        raise UserError(
            at=str(path),
            got=f"{first['msg'].lower()} at {place}",
            want="a file as nalar wrote it",
        ) from error


def load_optimizer(folder: Path, optimizer: MuonClip) -> None:
    """Give an optimizer the state that it had when the checkpoint was saved."""
    path = folder / STATE / OPTIMIZER
    try:
        optimizer.load_state_tensors(load_file(path))
    except (SafetensorError, KeyError, RuntimeError, FileNotFoundError) as error:
        raise UserError(
            at=str(path), got=str(error), want="the state of this run's optimizer"
        ) from error


def load_reference(folder: Path) -> dict[str, Tensor]:
    """The weights of the reference, as they were when the checkpoint was saved."""
    path = folder / STATE / REFERENCE
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(
            at=str(path), got=str(error), want="the weights of this run's reference"
        ) from error


def _copied(model: Transformer) -> Transformer:
    """The model with copies, in main memory, of its weights and buffers but for those that never change."""
    copies = {
        id(tensor): _same_kind(tensor, tensor.detach().to("cpu", copy=True))
        for tensor in (*model.parameters(), *model.buffers())
    } | {id(tensor): tensor for tensor in lasting(model)}
    return deepcopy(model, copies)  # deepcopy takes what is in its memo for done


def _same_kind(tensor: Tensor, data: Tensor) -> Tensor:
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(data, requires_grad=False) if is_parameter else data


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
