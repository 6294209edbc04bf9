"""A model that is there, before it is trained further: its config, its tokenizer, its way of thinking."""

from pathlib import Path

from nalar.config import UserError
from nalar.data.template import CHAT_TEMPLATE, END_THINK, TOOL_TEMPLATE
from nalar.data.tokenizer import Tokenizer
from nalar.model.config import ModelConfig
from nalar.model.folder import ModelFolder
from nalar.model.weights import read_config


def read_folder(folder: Path, *, may_score: bool = False) -> tuple[ModelConfig, Tokenizer]:
    """UserError where a part of it is missing, does not fit the others, or leaves no place for a thought.

    may_score: whether a model that scores will do, too.
    """
    model = read_config(folder)
    if model.num_labels is not None and not may_score:
        raise UserError(
            at=str(folder), got="a model that scores", want="a model that predicts tokens"
        )
    _refuse_foreign_template(folder)
    tokenizer = Tokenizer.load(folder)
    refuse_foreign_ids(folder, tokenizer.vocab_size, model)
    return model, tokenizer


def refuse_foreign_ids(folder: Path, ids: int, model: ModelConfig) -> None:
    """UserError where a folder's tokenizer has ids that its model lacks. ids: how many it has."""
    if ids > model.vocab_size:
        raise UserError(
            at=str(folder),
            got=f"a tokenizer of {ids} ids and a model of {model.vocab_size}",
            want="a model that knows every id of its tokenizer",
        )


def _refuse_foreign_template(folder: Path) -> None:
    template, ours = ModelFolder.read(folder).chat_template, (CHAT_TEMPLATE, TOOL_TEMPLATE)
    if template is not None and template.text.strip() in ours:
        return
    got = "no chat template" if template is None else "another chat template than nalar's own"
    if template is not None and END_THINK not in template.text:
        got = f"a chat template without {END_THINK}, which has no place for a thought"
    raise UserError(
        at=str(template.path if template else folder),
        got=got,
        want="the template that nalar writes beside its tokenizers, by which it renders dialogues",
        hint=f"nalar adopt {folder} TARGET makes a copy that has it",
    )
