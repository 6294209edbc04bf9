"""A checkpoint of somebody else's, made one that can be trained here: its tokenizer learns our special tokens.

Turns and thoughts are marked by ids of their own, and a published tokenizer lacks some of them. Each gets an id behind
all others; its row of the embedding, and of the head, begins as the mean of the rows of words that say the same.
Everything else stays as it is.
"""

from collections.abc import Mapping
from pathlib import Path

import tokenizers
import torch
from tokenizers import AddedToken
from torch import Tensor

from nalar.config import UserError
from nalar.data import template
from nalar.data.tokenizer import Tokenizer
from nalar.disk import replace_dir
from nalar.model.folder import CONFIG, ModelFolder, read_json
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, read_config, save_model

# V vocabulary · D hidden width
_SAYS: Mapping[str, str] = {
    template.END: "\n\n",
    template.USER: "\nQuestion:",
    template.ASSISTANT: "\nAnswer:",
    template.THINK: " think",
    template.END_THINK: "\n",
}
"""What each special token stands for, in words that a base has seen."""


def adopted(folder: Path, target: Path) -> Path:
    """The folder itself where its template is ours; else `target`, made from it where that is not there yet.

    UserError where its tokenizer is none that this program can read.
    """
    if is_ours(folder):
        return folder
    if not target.is_dir():
        _adopt(folder, target)
    return target


def is_ours(folder: Path) -> bool:
    found = ModelFolder.read(folder).chat_template
    known = (template.CHAT_TEMPLATE, template.TOOL_TEMPLATE)
    return found is not None and found.text.strip() in known


def _adopt(folder: Path, target: Path) -> None:
    config = read_config(folder)
    backend, said = _backend(folder), {}
    before = backend.get_vocab_size()
    for text, words in _SAYS.items():
        if backend.token_to_id(text) is None:
            said[text] = backend.encode(words, add_special_tokens=False).ids
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in said])
    try:
        tokenizer = Tokenizer(backend)
    except KeyError as error:
        raise UserError(
            at=str(folder),
            got=f"a tokenizer with {error} in a token",
            want="a byte-level tokenizer, such as those of Qwen and Llama",
        ) from error
    model = load_model(folder, dtype=_dtype(folder), with_mtp=False)
    model = _with_rows(model, max(config.vocab_size, tokenizer.vocab_size))
    vocab = backend.get_vocab()
    rows = {vocab[text]: ids for text, ids in said.items()}
    assert all(row >= before for row in rows)
    with torch.no_grad():
        for weight_VD in _tables(model):
            for row, ids in rows.items():
                weight_VD[row] = weight_VD[ids].float().mean(0)
    token_ids = {
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.end_id,
        "bos_token_id": tokenizer.user_id,
    }
    with replace_dir(target) as temp:
        save_model(model, temp, token_ids=token_ids)
        tokenizer.save(temp)


def _backend(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing more precise
        got = "no tokenizer.json" if not path.is_file() else f"{type(error).__name__}: {error}"
        raise UserError(at=str(folder), got=got, want="a folder with a tokenizer") from error


def _dtype(folder: Path) -> torch.dtype:
    """As the weights lie there, so that none is rounded."""
    name = str(read_json(folder / CONFIG).get("torch_dtype", "float32"))
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _tables(model: Transformer) -> list[Tensor]:
    """What has a row an id: the embedding, and the head where it is another matrix."""
    embedding = model.model.embed_tokens.weight
    head = model.head_weight
    return [embedding] if head is embedding else [embedding, head]


def _with_rows(model: Transformer, rows: int) -> Transformer:
    """The model with room for so many ids; itself where it has it."""
    config = model.config
    if rows == config.vocab_size:
        return model
    larger = Transformer(config.model_copy(update={"vocab_size": rows}))
    larger.to(model.head_weight.dtype)
    state = larger.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            state[name][: tensor.shape[0]].copy_(tensor)
    return larger
