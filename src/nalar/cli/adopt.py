"""`nalar adopt`: a published model made ready for dialogues with thoughts."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from nalar.cli import flags
from nalar.cli.choice import model_folder
from nalar.cli.output import Document, Output
from nalar.config import UserError
from nalar.pipeline.preflight import refuse_if_not_writable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adopt:
    """Copy FOLDER, a model as published, to TARGET, with a tokenizer and a chat template that all verbs take.

    Ends of texts and beginnings keep their ids under nalar's names; marks of turns and thoughts that it lacks get new
    ones. FOLDER is only read. Try, with a folder of yours:

    nalar adopt FOLDER ready
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """A Hugging Face folder with config.json, safetensors and a byte-level tokenizer.json."""
    target: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TARGET")]
    """Folder to write: a new one."""
    dry_run: bool = False
    """Say what would be added; read no weights, write nothing."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


class AdoptDocument(Document):
    """What the copy has."""

    folder: str
    renamed: dict[str, str]
    """Special tokens of nalar's, each with the name that it had."""
    added: dict[str, int]
    """New ones, and their ids."""
    vocab_size: int
    """Ids of the tokenizer."""
    rows: int
    """Of the embedding."""


def run(args: Sequence[str]) -> int:
    from nalar.pipeline.adopt import adopt, is_ours, plan_adoption

    out = Output(json="--json" in args)
    asked = flags.parse(Adopt, args, verb="adopt")
    folder, target = model_folder(asked.folder), Path(asked.target).expanduser()
    if target.exists():
        raise UserError(at=str(target), got="something that is there already", want="a new folder")
    if is_ours(folder):
        raise UserError(
            at=str(folder),
            got="a model with nalar's own chat template",
            want="one as others publish them",
            hint="--model takes it as it is",
        )
    plan = plan_adoption(folder)
    if not asked.dry_run:
        refuse_if_not_writable(target.parent)
        adopt(folder, plan, target)
    names = {token_id: plan.tokenizer.token_bytes(token_id).decode() for token_id in plan.added}
    had = ", ".join(f"{theirs} as {ours}" for ours, theirs in plan.renamed.items()) or "nothing"
    new = ", ".join(f"{name} ({token_id})" for token_id, name in names.items()) or "nothing"
    out.text(f"kept {had}; added {new}; {plan.rows:,} rows in the embedding")
    wrote = "would write {} (nothing was written)" if asked.dry_run else "wrote {}"
    out.text(wrote.format(target))
    out.document(
        AdoptDocument(
            folder=str(target),
            renamed=dict(plan.renamed),
            added={name: token_id for token_id, name in names.items()},
            vocab_size=plan.tokenizer.vocab_size,
            rows=plan.rows,
        )
    )
    return 0
