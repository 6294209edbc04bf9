"""What pretraining reads: the run's tokenizer and batches, the same ones whenever the run goes on."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from nalar.config import UserError
from nalar.data.learning import draw_samples, learn
from nalar.data.loader import Loaded, SourceRecord, load
from nalar.data.mixture import Mixture
from nalar.data.tokenizer import Tokenizer
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.session import C, Session
from nalar.train.checkpoint import Resumed

DATA_FILE = "data.json"
_ON_A_GPU = 4
"""Processes that make documents ahead, by default."""
T = TypeVar("T")


class DataRecord(BaseModel):
    """`data.json`: what a run reads. Only gains keys."""

    schema_version: int = 1
    sources: list[SourceRecord]


def prepare(
    session: Session[ZeroConfig], resumed: Resumed | None
) -> tuple[Tokenizer, Mixture] | None:
    """None: told to stop, what is cached so far is kept. UserError where the sources are not what they were."""
    config = session.config

    def read() -> tuple[Tokenizer, Mixture] | None:
        tokenizer = tokenizer_of(config, resumed)
        loaded = _load(session, tokenizer)
        if loaded is None:
            return None
        if loaded.records:
            is_new = keep(session, loaded.records)
            trained = config.pretrain.slice_tokens * config.pretrain.max_slices
            for record in loaded.records if is_new else ():
                passes = trained * record.weight_frac / record.tokens
                session.observer.note(f"{record.source}: at most {passes:.2g} passes over it")
        return tokenizer, loaded.batches

    is_procedural = all(source.kind == "procedural" for source in config.data.sources)
    return read() if is_procedural or resumed else metered(session, read)


def metered(session: Session[C], read: Callable[[], T | None]) -> T | None:
    """Reading files is a stage with a receipt of its own; a run that goes on finds them in the cache."""
    if session.is_done("data"):
        return read()
    with session.start("data", steps=None) as meter:
        found = read()
        session.receipt("data", meter)
    if found is not None:
        session.mark_done("data")
        session.observer.stage_finished("data")
    return found


def tokenizer_of(config: ZeroConfig, resumed: Resumed | None) -> Tokenizer:
    """The one that the run has used so far; else the one that the config names, or one learned from the sources."""
    if resumed is None:
        return named_or_learned(config)
    tokenizer = Tokenizer.load(resumed.folder)
    folder = Path(config.tokenizer.path or "").expanduser()
    if config.tokenizer.path is None or not folder.is_dir():  # the checkpoint's own is enough
        return tokenizer
    if Tokenizer.load(folder).fingerprint != tokenizer.fingerprint:
        raise UserError(
            at=f"tokenizer.path {folder}",
            got="another tokenizer than the checkpoint's",
            want="the tokenizer that the run began with",
            hint=f"it lies in {resumed.folder}",
        )
    return tokenizer


def named_or_learned(config: ZeroConfig) -> Tokenizer:
    """ConfigError where it has not as many ids as the model."""
    if config.tokenizer.path is None:
        samples = draw_samples(config.data, config.corpus, config.tokenizer.sample_documents)
        return learn(samples, config.tokenizer)
    tokenizer = Tokenizer.load(Path(config.tokenizer.path).expanduser())
    size = tokenizer.vocab_size
    if size != config.model.vocab_size:
        raise UserError(
            at=f"tokenizer.path {config.tokenizer.path}",
            got=f"a tokenizer of {size} ids",
            want=f"as many as the model has: model.vocab_size={config.model.vocab_size}",
            hint=f"--tokenizer.vocab-size {size} --model.vocab-size {size}",
        )
    return tokenizer


def _load(session: Session[ZeroConfig], tokenizer: Tokenizer) -> Loaded | None:
    config = session.config
    return load(
        config.data,
        config.corpus,
        config.packing,
        tokenizer,
        config.seed,
        processes=processes_ahead(config, session.place.device.type),
        note=session.observer.note,
        should_stop=session.should_stop,
    )


def processes_ahead(config: ZeroConfig, device: str) -> int:
    """That make documents ahead: where a GPU computes, its CPU has cores to spare."""
    given = config.pretrain.prefetch_processes
    if given is not None:
        return given
    return min(_ON_A_GPU, (os.cpu_count() or 1) // 2) if device == "cuda" else 0


def keep(session: Session[C], records: list[SourceRecord]) -> bool:
    """Write down what was read; whether that is the first time.

    UserError where a run that goes on would read something else than it began with.
    """
    path = session.run.path / DATA_FILE
    if not path.exists():
        session.run.write_json(DATA_FILE, DataRecord(sources=records).model_dump())
        return True
    try:
        known = DataRecord.model_validate(session.run.read_json(DATA_FILE))
    except ValidationError as error:
        raise UserError(
            at=str(path), got="a broken file", want="a file as nalar wrote it"
        ) from error
    before = {record.source: record.digest for record in known.sources}
    for record in records:
        if record.digest != before.get(record.source):
            raise UserError(
                at=record.source,
                got="other documents than the run began with",
                want="the same, so that it goes on as if it had never stopped",
                hint="put the files back as they were, or start a new run",
            )
    return False
