"""From the sources that a config names to batches: caches made or found, streams opened, what was read on record."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from nalar.config import UserError
from nalar.data.build import Building, cached
from nalar.data.cache import TokenCache
from nalar.data.config import (
    CorpusConfig,
    DataConfig,
    DatasetSource,
    FileSource,
    PackingConfig,
    ProceduralSource,
)
from nalar.data.files import refuse_no_source
from nalar.data.mixture import CachedStream, Mixture, ProceduralStream, Stream
from nalar.data.packing import Mask, Packing
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
    held_out: int = 0
    """Dialogues that are not trained on."""
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


@dataclass(frozen=True)
class Dialogues:
    """One source of dialogues, none of them ever cut: those to train on, and those held out."""

    batches: Mixture
    record: SourceRecord
    epoch_tokens: int
    """Targets of one pass over those to train on, prompts included."""
    held_out: CachedStream


def load(
    data: DataConfig,
    corpus: CorpusConfig,
    packing: PackingConfig,
    tokenizer: Tokenizer,
    seed: int,
    *,
    processes: int = 0,
    note: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Loaded | None:
    """Open every source, making caches where there are none. None: told to stop; what is cached so far is kept.

    processes: that make the procedural corpus ahead of time; they end where the batches are closed. UserError where a
    source is missing, empty, unreadable, or bad beyond data.max_bad_frac.
    """
    refuse_no_source(data)
    streams, records = list[tuple[Stream, float]](), list[SourceRecord]()
    total = sum(source.weight for source in data.sources)
    for number, source in enumerate(data.sources):
        if isinstance(source, ProceduralSource):
            procedural = ProceduralStream(Packing(tokenizer, corpus, packing, seed), processes)
            streams.append((procedural, source.weight))
            continue
        cache = _cache(source, data, tokenizer, note, should_stop)
        if cache is None:
            return None
        stream = CachedStream(cache, longest=packing.document_tokens, name=f"{seed} {number}")
        streams.append((stream, source.weight))
        records.append(_record(source, cache, source.weight / total))
        note(described(records[-1], cache.index.tally.text()))
    return Loaded(Mixture(streams, packing.step_tokens), records)


def load_dialogues(
    source: FileSource | DatasetSource,
    data: DataConfig,
    packing: PackingConfig,
    tokenizer: Tokenizer,
    seed: int,
    *,
    held_out_frac: float,
    note: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Dialogues | None:
    """Open a source of dialogues as `load` does, for a loss over the assistant's own tokens. None: told to stop.

    Dialogues of more than packing.document_tokens are left out, counted and told. Which are held out depends on seed
    and ids alone: the same dialogue twice is on one side both times.
    """
    cache = _cache(source, data, tokenizer, note, should_stop)
    if cache is None:
        return None
    held_D = held_out(cache, seed, held_out_frac)
    trained, held = (
        CachedStream(
            cache,
            longest=packing.document_tokens,
            name=f"{seed} 0",
            is_whole=True,
            chosen_D=chosen_D,
        )
        for chosen_D in (~held_D, held_D)
    )
    left_out = trained.left_out + held.left_out
    record = _record(source, cache, 1.0, left_out=left_out, held_out=held.documents)
    note(described(record, cache.index.tally.text()))
    _refuse_useless(record, trained, packing)
    batches = Mixture([(trained, 1.0)], packing.step_tokens)
    return Dialogues(batches, record, trained.targets, held)


def held_out(cache: TokenCache, seed: int, frac: float) -> Mask:
    """Documents whose hash, with the seed, falls into the first `frac` of all hashes."""
    found_D = np.zeros(len(cache.lengths_D), dtype=bool)
    for number, size in enumerate(cache.lengths_D if frac else ()):
        ids = cache.ids(number, 0, int(size)).astype("<u4").tobytes()
        digest = hashlib.blake2b(ids, digest_size=8, key=str(seed).encode()).digest()
        found_D[number] = int.from_bytes(digest, "big") < frac * 2**64
    return found_D


def _cache(
    source: FileSource | DatasetSource,
    data: DataConfig,
    tokenizer: Tokenizer,
    note: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> TokenCache | None:
    return cached(
        open_source(source),
        tokenizer,
        Path(data.cache_dir).expanduser(),
        max_bad_frac=data.max_bad_frac,
        on_progress=_teller(note),
        should_stop=should_stop,
    )


def _record(
    source: FileSource | DatasetSource,
    cache: TokenCache,
    weight_frac: float,
    *,
    left_out: int = 0,
    held_out: int = 0,
) -> SourceRecord:
    index = cache.index
    return SourceRecord(
        source=word_of(source),
        weight_frac=weight_frac,
        records=index.tally.records,
        documents=index.documents,
        tokens=index.tokens,
        skipped=index.tally.faults,
        left_out=left_out,
        held_out=held_out,
        digest=index.digest or "",
        tokenizer=index.tokenizer,
        cache=str(cache.folder),
    )


def described(record: SourceRecord, skipped: str) -> str:
    """One line on a source, and what was wrong in it."""
    text = f"{record.source}: {record.documents:,} documents, {record.tokens:,} tokens"
    if skipped:
        text += f"; skipped {skipped}"
    if record.left_out:
        text += f"; {record.left_out:,} dialogues are too long to come whole and left out"
    if record.held_out:
        text += f"; {record.held_out:,} are held out"
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


def _refuse_useless(record: SourceRecord, trained: CachedStream, packing: PackingConfig) -> None:
    """UserError where no dialogue is left to train on, or fewer tokens than a step takes."""
    if not trained.targets:
        others = f"{record.left_out} too long and {record.held_out} held out"
        raise UserError(
            at=record.source,
            got=f"{record.documents} dialogues, {others}",
            want=f"some to train on, of at most {packing.document_tokens} tokens",
            hint="a larger --packing.document-tokens" if record.left_out else "--held-out-frac 0",
        )
    if trained.targets < packing.step_tokens:
        n = trained.targets
        raise UserError(
            at="packing.step_tokens",
            got=f"{packing.step_tokens}, and {n} tokens of dialogues to train on",
            want="at least one step an epoch",
            hint=f"--packing.step-tokens {n} --packing.document-tokens "
            f"{min(n, packing.document_tokens)}",
        )
