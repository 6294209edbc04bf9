"""From the sources that a config names to batches: caches made or found, streams opened, what was read on record."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from nalar.config import ConfigError, UserError
from nalar.data.build import Building, cached
from nalar.data.config import AnySource, CorpusConfig, DataConfig, PackingConfig, ProceduralSource
from nalar.data.files import refuse_no_source
from nalar.data.mixture import CachedStream, Mixture, ProceduralStream, Stream
from nalar.data.packing import Packing
from nalar.data.reader import open_source
from nalar.data.source_words import word_of
from nalar.data.tally import Fault
from nalar.data.tokenizer import Tokenizer

NOTE_EVERY_S = 10.0


class SourceRecord(BaseModel):
    """What was found in a source. Only gains keys."""

    source: str
    """As one word of the command line."""
    weight_frac: float
    """Its share of the tokens trained on."""
    records: int
    documents: int
    tokens: int
    """Token ids, the end of each document included."""
    skipped: dict[str, Fault]
    """Records that could not be used, by reason."""
    left_out: int
    """Dialogues that are too long to come whole."""
    digest: str
    """Of the ids: the same digest, the same documents."""
    tokenizer: str
    """Fingerprint."""
    cache: str
    """Folder."""


@dataclass(frozen=True)
class Loaded:
    """Batches, and what they are made from; nothing on the procedural corpus, which the config says all about."""

    batches: Mixture
    records: list[SourceRecord]


def load(
    data: DataConfig,
    corpus: CorpusConfig,
    packing: PackingConfig,
    tokenizer: Tokenizer,
    seed: int,
    *,
    whole_dialogues: bool = False,
    note: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Loaded | None:
    """Open every source, making caches where there are none. None: told to stop; what is cached so far is kept.

    whole_dialogues, for SFT: no dialogue is cut, longer ones than packing.document_tokens are left out.
    UserError where a source is missing, empty, unreadable, or bad beyond data.max_bad_frac.
    """
    refuse_no_source(data)
    streams, records = list[tuple[Stream, float]](), list[SourceRecord]()
    total = sum(source.weight for source in data.sources)
    for number, source in enumerate(data.sources):
        if isinstance(source, ProceduralSource):
            procedural = ProceduralStream(Packing(tokenizer, corpus, packing, seed))
            streams.append((procedural, source.weight))
            continue
        cache = cached(
            open_source(source),
            tokenizer,
            Path(data.cache_dir).expanduser(),
            max_bad_frac=data.max_bad_frac,
            on_progress=_teller(note),
            should_stop=should_stop,
        )
        if cache is None:
            return None
        stream = CachedStream(
            cache,
            longest=packing.document_tokens,
            name=f"{seed} {number}",
            is_whole=whole_dialogues and source.content == "dialogue",
        )
        frac = source.weight / total
        _refuse_useless(source, stream, frac, packing, whole_dialogues)
        streams.append((stream, source.weight))
        index = cache.index
        records.append(
            SourceRecord(
                source=word_of(source),
                weight_frac=frac,
                records=index.tally.records,
                documents=index.documents,
                tokens=index.tokens,
                skipped=index.tally.faults,
                left_out=stream.left_out,
                digest=index.digest or "",
                tokenizer=index.tokenizer,
                cache=str(cache.folder),
            )
        )
        note(described(records[-1], index.tally.text()))
    return Loaded(Mixture(streams, packing.step_tokens), records)


def described(record: SourceRecord, skipped: str) -> str:
    """One line on a source, and what was wrong in it."""
    text = f"{record.source}: {record.documents:,} documents, {record.tokens:,} tokens"
    if skipped:
        text += f"; skipped {skipped}"
    if record.left_out:
        text += f"; {record.left_out:,} dialogues are too long to come whole and left out"
    return text


def _teller(note: Callable[[str], None]) -> Callable[[Building], None]:
    """Says every so often how far a cache is."""
    last = time.monotonic()

    def tell(building: Building) -> None:
        nonlocal last
        if time.monotonic() - last < NOTE_EVERY_S:
            return
        last = time.monotonic()
        done = "" if building.done_frac is None else f" ({building.done_frac:.0%})"
        note(
            f"{building.where}: tokenised {building.documents:,} documents, "
            f"{building.tokens:,} tokens{done}"
        )

    return tell


def _refuse_useless(
    source: AnySource,
    stream: CachedStream,
    frac: float,
    packing: PackingConfig,
    whole_dialogues: bool,
) -> None:
    """UserError where every dialogue is too long, or a step might hold none at all."""
    if not stream.targets:
        raise UserError(
            at=source.where,
            got=f"{stream.left_out} dialogues, each longer than {packing.document_tokens} tokens",
            want="some that fit",
            hint="a larger --packing.document-tokens",
        )
    if whole_dialogues and frac * packing.step_tokens < packing.document_tokens:
        raise ConfigError(
            at="packing.step_tokens",
            got=f"{packing.step_tokens}, of which {source.where} gets {frac:.0%}",
            want=f"room for at least one dialogue of packing.document_tokens={packing.document_tokens}",
        )
