"""A checkpoint of somebody else's, made one that can be trained here: its tokenizer learns our special tokens.

Turns and thoughts are marked by ids of their own. What a published model has for the end of a text is our end, and what
it has for the beginning of one is our mark of a user, with which every dialogue begins: they keep their ids and rows
under our names. Marks that it lacks get ids behind all others, with rows made of those of words that say the same.
Everything else stays as it is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from nalar.config import UserError
from nalar.data import template
from nalar.data.tokenizer import Tokenizer, read_backend
from nalar.disk import replace_dir
from nalar.model.folder import ModelFolder
from nalar.model.shards import stored_tensors
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, read_config, refuse_unfit_weights, save_model
from nalar.pipeline.base import refuse_foreign_ids

_IS: Mapping[str, str] = {template.END: "eos_token", template.USER: "bos_token"}
"""Entries of a tokenizer_config.json that name the same by another name."""
_SAYS: Mapping[str, Sequence[str]] = {
    template.END: ("\n\n", "\n\n\n", template.END),
    template.USER: ("\nQuestion:",),
    template.ASSISTANT: ("\nAnswer:",),
    template.THINK: (" think", template.THINK),
    template.END_THINK: ("\n", "\n\n", ".\n\n", template.END_THINK),
}
"""Words that a base has seen in the place of each. Those that a model is to say have several, so that their row is no
other token's: under adapters of low rank, which train no rows, two equal ones could never be told apart."""
_PLAIN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
"""Nothing beside a special token belongs to it."""
_EMBEDDING = "model.embed_tokens.weight"
_ROWS = (_EMBEDDING, "lm_head.weight")
"""Parameters with a row for each id."""
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Adoption:
    """What a copy will have that the model has not."""

    tokenizer: Tokenizer
    renamed: Mapping[str, str]
    """Tokens of ours, each with the name that it had."""
    added: Mapping[int, Sequence[int]]
    """New ids, each with those of the words that it stands for."""
    rows: int
    """Of the embedding: as many as before, where the new ids have room in them."""


def adopted(folder: Path, target: Path) -> Path:
    """The folder itself where its template is ours; else `target`, made from it where that is not there yet."""
    if is_ours(folder):
        return folder
    if not target.is_dir():
        adopt(folder, plan_adoption(folder), target)
    return target


def is_ours(folder: Path) -> bool:
    found = ModelFolder.read(folder).chat_template
    known = (template.CHAT_TEMPLATE, template.TOOL_TEMPLATE)
    return found is not None and found.text.strip() in known


def plan_adoption(folder: Path) -> Adoption:
    """Reads no weights. UserError where this program cannot read the model or its tokenizer."""
    model = read_config(folder)
    if model.num_labels is not None:
        raise UserError(
            at=str(folder), got="a model that scores", want="a model that predicts tokens"
        )
    refuse_unfit_weights(folder)
    backend, renamed = _renamed(read_backend(folder), ModelFolder.read(folder).tokenizer_config)
    refuse_foreign_ids(folder, backend.get_vocab_size(), model)
    new = [text for text in template.SPECIAL_TOKENS if backend.token_to_id(text) is None]
    words = [[id_ for said in _SAYS[text] for id_ in backend.encode(said).ids] for text in new]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in new])
    try:
        tokenizer = Tokenizer(backend)
    except UserError as error:
        raise UserError(at=str(folder), got=error.got, want=error.want) from error
    vocab = backend.get_vocab()
    added = {vocab[text]: ids for text, ids in zip(new, words, strict=True)}
    return Adoption(tokenizer, renamed, added, rows=max(model.vocab_size, tokenizer.vocab_size))


def adopt(folder: Path, plan: Adoption, target: Path) -> None:
    """Write the copy, weights in the dtype in which they lie; it is whole or not there."""
    kind = stored_tensors(folder)[_EMBEDDING].dtype
    model = load_model(folder, dtype=_DTYPES.get(kind, torch.float32), with_mtp=False)
    _grow(model, plan)
    with replace_dir(target) as partial:
        save_model(model, partial, token_ids=plan.tokenizer.token_ids)
        plan.tokenizer.save(partial)


def _renamed(
    backend: tokenizers.Tokenizer, said: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer with our names for what it has, adding nothing of its own to a text; and what was renamed.

    said: its tokenizer_config.json.
    """
    written, renamed = json.loads(backend.to_str()), dict[str, str]()
    entries = {str(entry["content"]): entry for entry in written["added_tokens"]}
    vocab = written["model"]["vocab"]
    for ours, field in _IS.items():
        name = said.get(field)
        name = name.get("content") if isinstance(name, dict) else name
        if ours not in entries and name in entries and name not in template.SPECIAL_TOKENS:
            entries[ours], renamed[ours] = entries.pop(name), name
            if isinstance(vocab, dict) and name in vocab:
                vocab[ours] = vocab.pop(name)
    for text in entries.keys() & set(template.SPECIAL_TOKENS):
        entries[text] |= {"content": text, "special": True} | _PLAIN
    written |= {"post_processor": None, "truncation": None, "padding": None}
    return tokenizers.Tokenizer.from_str(json.dumps(written)), renamed


@torch.no_grad()
def _grow(model: Transformer, plan: Adoption) -> None:
    """V vocabulary · D hidden width."""
    for name, old_VD in list(model.named_parameters()):
        if name not in _ROWS:
            continue
        new_VD = old_VD.new_zeros(plan.rows, old_VD.shape[1])
        new_VD[: len(old_VD)] = old_VD
        for token_id, ids in plan.added.items():
            new_VD[token_id] = _like(old_VD[list(ids)].float())
        owner = model.get_submodule(name.rpartition(".")[0])
        owner.weight = nn.Parameter(new_VD)
    model.config = model.config.model_copy(update={"vocab_size": plan.rows})


def _like(rows_ND: Tensor) -> Tensor:
    """Their mean, as long as they are: a plain mean is short, and as an output never beats the best of them."""
    mean_D = rows_ND.mean(0)
    length = rows_ND.norm(dim=-1).mean()
    like_D: Tensor = mean_D * (length / mean_D.norm().clamp_min(1e-12))
    return like_D
