"""The tensors of a model folder: safetensors files, one or several behind an index, mapped into memory."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nalar.config import UserError
from nalar.disk import decode, encode

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# How a file that is taken for safetensors begins when it is something else.
_FOREIGN = {
    b"PK\x03\x04": "a pickle, which can run code when it is read",  # as PyTorch zips it
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a pointer of git-lfs: its weights were not downloaded",
}
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_PICKLE_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
_WANT_FILE = "a whole safetensors file"


@dataclass(frozen=True)
class Stored:
    """What the header of its file says of one tensor."""

    path: Path
    dtype: str
    """As safetensors spells it: F32, BF16, F8_E4M3, ..."""
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[str]:
    """The names of the safetensors files that make up the model, whether they are there or not."""
    if (folder / INDEX).is_file():
        return sorted(set(_weight_map(folder / INDEX).values()))
    return [SINGLE]


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder by its key. Reads headers alone; UserError where they contradict each other."""
    index = folder / INDEX
    weight_map = _weight_map(index) if index.is_file() else None
    names = weight_files(folder)
    if weight_map is None and not (folder / SINGLE).is_file():
        raise _no_weights(folder)
    if SINGLE not in names and (folder / SINGLE).is_file():
        got = f"{SINGLE} beside an {INDEX} that does not name it"
        raise UserError(at=str(folder), got=got, want="one set of weights")
    found: dict[str, Stored] = {}
    for name in names:
        if not (folder / name).is_file():
            raise UserError(
                at=str(index), got=f"{name}, which is not there", want="files that the folder holds"
            )
        for key, stored in _header(folder / name).items():
            if key in found:
                got = f"{key}, which {found[key].path.name} holds too"
                raise UserError(at=str(folder / name), got=got, want="every key once")
            found[key] = stored
    if weight_map is not None:
        _check_index(index, weight_map, found)
    return found


@contextlib.contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A safetensors file, mapped: `get_tensor` gives a view of the file, which holds it open. UserError if damaged."""
    try:
        with safe_open(path, framework="pt") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        got = _kind_of(path) or f"a file cut short or damaged ({error})"
        raise UserError(at=str(path), got=got, want=_WANT_FILE) from error


def write_shards(
    folder: Path, tensors: Sequence[tuple[str, Tensor]], *, max_shard_bytes: int
) -> None:
    """Write keys and tensors in this order; an index where they fill more than one file.

    Two keys may share memory; it is written twice. A tensor larger than `max_shard_bytes` gets a file of its own.
    The caller makes the folder appear atomically.
    """
    shards = _split(tensors, max_shard_bytes)
    count = len(shards)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    names = names if count > 1 else [SINGLE]
    _refuse_other_weights(folder, {*names, INDEX} if count > 1 else {*names})
    for name, shard in zip(names, shards, strict=True):
        save_file(_unshared(shard), folder / name, metadata={"format": "pt"})
    if count > 1:
        document = {
            "metadata": {"total_size": sum(tensor.nbytes for _, tensor in tensors)},
            "weight_map": {
                key: name for name, shard in zip(names, shards, strict=True) for key, _ in shard
            },
        }
        (folder / INDEX).write_bytes(encode(document, indent=2) + b"\n")


def _weight_map(index: Path) -> Mapping[str, str]:
    document = decode(index.read_bytes())
    weight_map = document.get("weight_map") if document is not None else None
    if not isinstance(weight_map, dict) or not weight_map:
        got = "text that is not a JSON object" if document is None else "no weight_map of keys"
        raise UserError(at=str(index), got=got, want="a weight_map from keys to file names")
    for key, name in weight_map.items():
        # Only names of the folder's own entries: no path may lead out of it.
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise UserError(
                at=f"{index}: {key}", got=json.dumps(name), want="the name of a file in this folder"
            )
        if not name.endswith(".safetensors"):
            raise UserError(at=f"{index}: {key}", got=name, want="a safetensors file")
    return weight_map


def _check_index(index: Path, weight_map: Mapping[str, str], found: Mapping[str, Stored]) -> None:
    for key, name in weight_map.items():
        if key not in found or found[key].path.name != name:
            got = f"the file {found[key].path.name}" if key in found else "no such key in any file"
            raise UserError(at=f"{index}: {key}", got=got, want=f"the tensor in {name}")
    for key, stored in found.items():
        if key not in weight_map:
            raise UserError(
                at=f"{stored.path}: {key}", got="a tensor", want=f"only those that {INDEX} names"
            )


def _header(path: Path) -> dict[str, Stored]:
    with open_shard(path) as shard:
        keys: list[str] = shard.keys()
        views = {key: shard.get_slice(key) for key in keys}
        return {
            key: Stored(path, view.get_dtype(), tuple(view.get_shape()))
            for key, view in views.items()
        }


def _kind_of(path: Path) -> str | None:
    """What a file is that is no safetensors, where its first bytes tell."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(32)
        if not head:
            return "an empty file"
        if head[0] == 0x80 and head[1:2] in _PICKLE_PROTOCOLS and head[8:9] != b"{":
            return _FOREIGN[b"PK\x03\x04"]
        return next((kind for magic, kind in _FOREIGN.items() if head.startswith(magic)), None)
    return None


def _no_weights(folder: Path) -> UserError:
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if name.endswith(_PICKLES)]
    got, hint = f"no {SINGLE} and no {INDEX}", None
    if pickles:
        got = f"{pickles[0]}, a pickle, which can run code when it is read"
        hint = "convert it where you trust it: save_pretrained of transformers writes safetensors"
    elif any(name.endswith(".gguf") for name in names):
        got = "GGUF weights, which nalar does not read yet"
    elif any(name.endswith(".safetensors") for name in names):
        got = f"safetensors files without {INDEX}"
    return UserError(at=str(folder), got=got, want="weights as safetensors", hint=hint)


def _split(
    tensors: Sequence[tuple[str, Tensor]], max_shard_bytes: int
) -> list[list[tuple[str, Tensor]]]:
    shards: list[list[tuple[str, Tensor]]] = [[]]
    room = max_shard_bytes
    for key, tensor in tensors:
        if tensor.nbytes > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append((key, tensor))
        room -= tensor.nbytes
    return shards


def _unshared(shard: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The format knows no shared memory, and its library refuses it: a second key gets a copy."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in shard:
        out[key] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return out


def _refuse_other_weights(folder: Path, ours: set[str]) -> None:
    for path in sorted(folder.glob("model*.safetensors*")):
        if path.name not in ours:
            raise UserError(
                at=str(folder), got=f"{path.name} of other weights", want="a folder without weights"
            )
