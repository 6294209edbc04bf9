"""`nalar push`: a model to the hub, with a card that is made of its run's report."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from nalar.cli import flags
from nalar.cli.choice import kind_of, model_folder, open_run, run_path
from nalar.cli.output import Document, Output
from nalar.config import UserError
from nalar.evals.card import model_card
from nalar.evals.r1_report import R1Report, build_r1
from nalar.evals.report import Report, build_report
from nalar.pipeline.r1_config import R1Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Push:
    """Upload MODEL to REPO of the Hugging Face hub, private unless told otherwise. The token is HF_TOKEN's.

    Its card says what the run measured, by what data and for what use. See it first:

    nalar push zero-cpu-1 me/zero-cpu --dry-run
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder (a name under runs/, or a path), or a folder that is a model."""
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REPO")]
    """OWNER/NAME. Made where there is none; one that is there keeps its visibility."""
    licence: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """Of the model, as the hub names it, such as mit or apache-2.0: yours to say. None: the card names none."""
    contact: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Where incidents are reported."""
    card: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A card of your own in place of the one that is made."""
    public: bool = False
    """Everybody may see it. Wants --licence and --contact."""
    dry_run: bool = False
    """Show the files and the card; send nothing."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


class Pushed(Document):
    """What `push --json` prints."""

    repo: str
    public: bool
    files: dict[str, int]
    """Bytes by name."""
    card: str
    commit: str | None
    """Its address; null: nothing was sent."""


def run(args: Sequence[str]) -> int:
    from nalar.model.upload import CARD, check_repo, published_files, upload

    out = Output(json="--json" in args)
    asked = flags.parse(Push, args, verb="push")
    check_repo(asked.repo)
    if asked.public and not (asked.card or (asked.licence and asked.contact)):
        raise UserError(
            at="--public",
            got="no licence or no contact",
            want="--licence and --contact: who takes it must know what is allowed and whom to tell",
            hint="--public --licence mit --contact me@example.org",
        )
    files = published_files(model_folder(asked.model))
    card = _card(asked)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    sizes[CARD] = len(card.encode())
    commit = None
    if asked.dry_run:
        out.text(card)
    else:
        token = os.environ.get("HF_TOKEN")
        commit = upload(asked.repo, files, card, public=asked.public, token=token)
    _tell(asked, sizes, commit, out)
    out.document(
        Pushed(repo=asked.repo, public=asked.public, files=sizes, card=card, commit=commit)
    )
    return 0


def _card(asked: Push) -> str:
    if asked.card is not None:
        try:
            return Path(asked.card).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(at="--card", got=str(error), want="a Markdown file") from error
    return model_card(
        asked.repo, _report(asked.model), licence=asked.licence, contact=asked.contact
    )


def _report(name: str) -> Report | R1Report | None:
    """Of a run, from its folder; None for a folder that is a model."""
    if not (run_path(name) / "run.json").exists():
        return None
    found = open_run(name)
    return build_r1(found) if kind_of(found) is R1Config else build_report(found)


def _tell(asked: Push, sizes: dict[str, int], commit: str | None, out: Output) -> None:
    for name, size in sizes.items():
        out.text(f"{size:>14,}  {name}")
    seen = "public" if asked.public else "private"
    total = sum(sizes.values())
    if commit is None:
        out.text(f"{total:>14,}  bytes would go to {asked.repo} ({seen}); nothing was sent")
    else:
        out.text(f"{total:>14,}  bytes went to {asked.repo} ({seen} if it is new): {commit}")
