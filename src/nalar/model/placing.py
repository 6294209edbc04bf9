"""Published tensors into parameters: checked by their headers, then copied from the mapped file into a view."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nalar.config import UserError
from nalar.model.config import ModelConfig
from nalar.model.families.placement import Placement
from nalar.model.families.registry import FAMILIES
from nalar.model.folder import CONFIG
from nalar.model.shards import INDEX, SINGLE, Stored, open_shard
from nalar.model.transformer import Transformer

_FLOATS = ("F64", "F32", "F16", "BF16")


def checked(folder: Path, config: ModelConfig, stored: Mapping[str, Stored]) -> list[Placement]:
    """The family's placements that have a tensor; UserError at the first that is missing, extra or wrong.

    Stops at the first missing key, so a config that claims a billion layers costs nothing.
    """
    family, present = FAMILIES[config.model_type], []
    for place in family.placements(config):
        if place.key in stored:
            _check(place, stored[place.key])
            present.append(place)
        elif place.is_written:
            file = INDEX if (folder / INDEX).is_file() else SINGLE
            raise UserError(
                at=f"{folder / file}: {place.key}",
                got="no such key",
                want=f"a tensor of shape {list(place.shape)}, as {CONFIG} describes",
                hint=_hint(config, place.key),
            )
    known = {place.key for place in present}
    for key, found in stored.items():
        if key not in known and not family.is_skipped(key):
            want = f"only the weights that {CONFIG} describes"
            raise UserError(at=f"{found.path}: {key}", got="a key too many", want=want)
    _check_copies(present, stored)
    return present


def allocate(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Transformer:
    """A model whose parameters hold anything; buffers that no folder holds are as the model computes them."""
    with torch.device("meta"):
        model = Transformer(config)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(p.shape, dtype=dtype, device=device)))
        for name, buffer in module.named_buffers(recurse=False):
            # Not empty_like: of a tensor on the meta device it imports 40 MB of compiler.
            empty = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
            setattr(module, name, empty if buffer.is_meta else buffer.to(device))
    return model


@torch.no_grad()
def fill(model: Transformer, present: Sequence[Placement], stored: Mapping[str, Stored]) -> None:
    """Copy every tensor into its place, shard by shard: a shard's pages are let go before the next is opened."""
    state = model.state_dict()
    firsts = [place for place in present if not place.is_copy]
    left = {name: tensor.numel() for name, tensor in state.items()}
    by_path = defaultdict(list)
    for place in firsts:
        by_path[stored[place.key].path].append(place)
    for path, places in by_path.items():
        with open_shard(path) as shard:
            for place in places:
                ours = view(state, place)
                ours.copy_(shard.get_tensor(place.key))
                left[place.name] -= ours.numel()
    unfilled = [name for name, numel in left.items() if numel]
    assert not unfilled, f"the family's table leaves out {unfilled}"


def view(state: Mapping[str, Tensor], place: Placement) -> Tensor:
    """Our side of a placement, in the published shape: the same memory."""
    return state[place.name][place.index].view(place.shape)


def _hint(config: ModelConfig, key: str) -> str | None:
    """Programs without multi-token prediction save the model without its blocks, and its config as it was."""
    layers = config.num_hidden_layers
    behind = range(layers, layers + config.num_nextn_predict_layers)
    if key.startswith(tuple(f"model.layers.{layer}." for layer in behind)):
        return f"num_nextn_predict_layers 0 in {CONFIG}, if the folder is to have no draft blocks"
    return None


def _check(place: Placement, found: Stored) -> None:
    at = f"{found.path}: {place.key}"
    if found.shape != place.shape:
        want = f"shape {list(place.shape)}, as {CONFIG} describes"
        raise UserError(at=at, got=f"shape {list(found.shape)}", want=want)
    if found.dtype not in _FLOATS:
        raise UserError(at=at, got=f"dtype {found.dtype}", want="one of " + ", ".join(_FLOATS))


def _check_copies(present: Sequence[Placement], stored: Mapping[str, Stored]) -> None:
    """A second key of a parameter must hold the bytes of the first, which alone is read."""
    first = {(place.name, place.index): place.key for place in present if not place.is_copy}
    for place in present:
        if not place.is_copy:
            continue
        copy, original = stored[place.key], stored[first[place.name, place.index]]
        with open_shard(copy.path) as one, open_shard(original.path) as other:
            key = first[place.name, place.index]
            if not _same_bytes(one.get_tensor(place.key), other.get_tensor(key)):
                got, want = "other values", f"the values of {key}, which it repeats"
                raise UserError(at=f"{copy.path}: {place.key}", got=got, want=want)


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
