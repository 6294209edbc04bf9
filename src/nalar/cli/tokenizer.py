"""`nalar tokenizer`: a tokenizer learned from one's own corpus."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import BaseModel, ValidationError

from nalar.cli import flags
from nalar.cli.output import Document, Output
from nalar.config import UserError
from nalar.data.config import CorpusConfig, DataConfig, Source, TokenizerConfig
from nalar.data.files import refuse_missing
from nalar.data.source_words import word_of
from nalar.pipeline.preflight import refuse_if_not_writable

if TYPE_CHECKING:
    from nalar.data.learning import Sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerFlags:
    """Learn a byte-level BPE from SOURCEs: files, folders, globs, hf:ID, each with settings such as ,field=body.

    Any text can be spelled in it, digits stand alone, and transformers reads what is written. Try:

    nalar tokenizer docs --out runs/tokenizer-docs --vocab-size 1024
    """

    sources: Annotated[tyro.conf.Positional[tuple[Source, ...]], tyro.conf.arg(metavar="SOURCE")]
    """Where the text is."""
    out: str
    """Folder to write: new, or without a tokenizer."""
    vocab_size: int = 4096
    """All ids: 256 bytes, 5 special tokens, and merges for the rest."""
    sample_documents: int = 20_000
    """Documents that merges are learned from, drawn evenly from each source by its weight, held in memory."""
    signs_apart: bool = False
    """Line ends and the signs of arithmetic never merge, so that each stays one token."""
    max_bad_frac: float = 0.1
    """Records that cannot be used are skipped and counted; more than this share is an error."""
    dry_run: bool = False
    """Check that the sources are there; read and write nothing."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


class SampledSource(BaseModel):
    """What was read of a source."""

    source: str
    records: int
    skipped: dict[str, int]
    """Records that could not be used, by reason."""
    sampled_documents: int
    """Longer documents count as several."""


class TokenizerDocument(Document):
    """What was learned, or with --dry-run what would be read."""

    folder: str
    vocab_size: int
    sources: list[SampledSource]
    fingerprint: str | None
    """The same for the same ids; null where nothing was learned."""
    bytes_per_token: float | None
    """Over the sample."""


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    asked = flags.parse(TokenizerFlags, args, verb="tokenizer")
    data, config = _configs(asked)
    folder = Path(asked.out).expanduser()
    _refuse_taken(folder)
    refuse_missing(data)
    if asked.dry_run:
        words = [word_of(source) for source in data.sources]
        out.text(f"would read  {', '.join(words)}\nwould write {folder} (nothing was written)")
        out.document(_document(folder, config.vocab_size, [], None, None))
        return 0
    refuse_if_not_writable(folder)
    return _learn(data, config, folder, out)


def _configs(asked: TokenizerFlags) -> tuple[DataConfig, TokenizerConfig]:
    try:
        data = DataConfig(sources=asked.sources, max_bad_frac=asked.max_bad_frac)
        config = TokenizerConfig(
            vocab_size=asked.vocab_size,
            sample_documents=asked.sample_documents,
            signs_apart=asked.signs_apart,
        )
    except ValidationError as error:
        first = error.errors()[0]
        flag = f"--{first['loc'][0]}".replace("_", "-")
        raise UserError(at=flag, got=str(first["input"]), want=first["msg"]) from error
    return data, config


def _refuse_taken(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or (folder / "tokenizer.json").exists()):
        raise UserError(
            at=str(folder),
            got="a tokenizer already" if folder.is_dir() else "a file",
            want="a folder without one",
            hint="--out NAME chooses another: what was trained on the old one needs it",
        )


def _learn(data: DataConfig, config: TokenizerConfig, folder: Path, out: Output) -> int:
    from nalar.data.learning import bytes_per_token, draw_samples, learn

    samples = draw_samples(data, CorpusConfig(), config.sample_documents)
    for sample in samples:
        read = f"{sample.source}: {sample.tally.records:,} records read, "
        skipped = sample.tally.text()
        out.text(
            f"{read}{len(sample.texts):,} documents sampled"
            + (f"; skipped {skipped}" if skipped else "")
        )
    tokenizer = learn(samples, config)
    tokenizer.save(folder)
    density = bytes_per_token(tokenizer, samples)
    out.text(f"{folder}: {tokenizer.vocab_size:,} ids, {density:.2f} bytes a token in the sample")
    size = tokenizer.vocab_size
    out.text(
        "A base model with it:\n  nalar pretrain base-cpu --data.sources SOURCE "
        f"--tokenizer.path {shlex.quote(str(folder))} "
        f"--tokenizer.vocab-size {size} --model.vocab-size {size}"
    )
    out.document(_document(folder, size, samples, tokenizer.fingerprint, density))
    return 0


def _document(
    folder: Path,
    vocab_size: int,
    samples: Sequence["Sample"],
    fingerprint: str | None,
    density: float | None,
) -> TokenizerDocument:
    sources = [
        SampledSource(
            source=sample.source,
            records=sample.tally.records,
            skipped={why: fault.count for why, fault in sample.tally.faults.items()},
            sampled_documents=len(sample.texts),
        )
        for sample in samples
    ]
    return TokenizerDocument(
        folder=str(folder),
        vocab_size=vocab_size,
        sources=sources,
        fingerprint=fingerprint,
        bytes_per_token=density,
    )
