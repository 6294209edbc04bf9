"""A model from the Hugging Face folder that other programs load, and back."""

from pathlib import Path

import torch

from nalar.config import UserError
from nalar.disk import encode
from nalar.model.config import ModelConfig
from nalar.model.families.registry import FAMILIES, family_of
from nalar.model.folder import CONFIG, GENERATION, read_json
from nalar.model.hub import locate
from nalar.model.placing import allocate, checked, fill, view
from nalar.model.shards import stored_tensors, weight_files, write_shards
from nalar.model.transformer import Transformer

MAX_SHARD_BYTES = 5_000_000_000


def save_model(
    model: Transformer,
    folder: Path,
    *,
    token_ids: dict[str, int],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `config.json`, `generation_config.json` and the weights into an existing folder, in the model's own dtype.

    token_ids: `eos_token_id`, `pad_token_id` and the like. The caller makes the folder appear atomically.
    """
    family = FAMILIES[model.config.model_type]
    state = model.state_dict()
    tensors = [
        (place.key, view(state, place))
        for place in family.placements(model.config)
        if place.is_written
    ]
    dtype = str(model.head_weight.dtype).removeprefix("torch.")
    config = family.publish_config(model.config) | token_ids | {"torch_dtype": dtype}
    generation = {"do_sample": True, "temperature": 1.0} | token_ids
    for name, document in ((CONFIG, config), (GENERATION, generation)):
        (folder / name).write_bytes(encode(document, indent=2) + b"\n")
    write_shards(folder, tensors, max_shard_bytes=max_shard_bytes)


def load_model(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    with_mtp: bool = True,
    scores: bool = False,
) -> Transformer:
    """The model in a folder, or of an id on the hub. Every key must be known, present, and of the right shape.

    dtype: of the parameters; None: fp32 on a CPU, bf16 elsewhere. Buffers, such as the fp32 balance bias, keep
    their own. Headers are checked before anything is allocated; then every tensor goes from the mapped file straight
    into its parameter, so a process holds the weights once. No code of a folder is ever run.
    with_mtp: False leaves the blocks of multi-token prediction on disk, where nobody drafts or trains with them.
    scores: whether it is to be a model that scores, of the ...ForSequenceClassification kind; UserError where it is not
    what is wanted.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    source = locate(name)
    config = read_config(source.folder)
    _refuse_other_head(source.folder, config, scores=scores)
    source.fetch(weight_files(source.folder))
    stored = stored_tensors(source.folder)
    present = checked(source.folder, config, stored)
    if not with_mtp:
        config = config.model_copy(update={"num_nextn_predict_layers": 0})
        kept = set(FAMILIES[config.model_type].placements(config))
        present = [place for place in present if place in kept]
    try:
        model = allocate(config, device, dtype)
    except (MemoryError, RuntimeError) as error:  # torch's allocators raise RuntimeError
        got, want = str(error).partition("\n")[0], f"a model that fits on {device}"
        raise UserError(at=str(source.folder), got=got, want=want) from error
    fill(model, present, stored)
    return model


def _refuse_other_head(folder: Path, config: ModelConfig, *, scores: bool) -> None:
    if scores == (config.num_labels is not None):
        return
    kinds = {True: "a model that scores", False: "a model that predicts tokens"}
    raise UserError(at=str(folder), got=kinds[not scores], want=kinds[scores])


def refuse_unfit_weights(folder: Path) -> None:
    """UserError where `load_model` would refuse a folder's weights. Reads config.json and headers alone."""
    checked(folder, read_config(folder), stored_tensors(folder))


def read_config(folder: Path) -> ModelConfig:
    """The model that a folder's config.json describes; UserError where it asks for what is not built."""
    path = folder / CONFIG
    document = read_json(path)
    quantization = document.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise UserError(
            at=f"{path}: quantization_config",
            got=f"quantised weights ({method or 'of an unnamed method'})",
            want="plain weights: nalar does not read quantised ones yet",
            hint="a copy of the model in bfloat16",
        )
    try:
        return family_of(document).read_config(document)
    except UserError as error:
        raise UserError(
            at=f"{path}: {error.at.removeprefix(f'{CONFIG} ')}",
            got=error.got,
            want=error.want,
            hint=error.hint,
        ) from error
