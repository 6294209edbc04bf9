"""A tokenizer learned from the sources themselves."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from nalar.config import ConfigError
from nalar.data.config import (
    CorpusConfig,
    DataConfig,
    DatasetSource,
    FileSource,
    ProceduralSource,
    TokenizerConfig,
)
from nalar.data.corpora.procedural import documents
from nalar.data.files import refuse_no_source
from nalar.data.mixture import shares
from nalar.data.reader import open_source
from nalar.data.source_words import word_of
from nalar.data.tally import Tally
from nalar.data.tokenizer import Tokenizer

STRETCH_CHARS = 2**16
"""A longer document counts as several, so that a sample's size is bounded."""


@dataclass(frozen=True)
class Sample:
    """Documents of a source, drawn evenly from all of it."""

    source: str
    """As one word of the command line."""
    texts: list[str]
    tally: Tally
    """Of all that was read."""


def learn(samples: list[Sample], config: TokenizerConfig) -> Tokenizer:
    """Merges from samples. ConfigError where they have too few. The same samples give the same tokenizer."""
    texts = itertools.chain.from_iterable(sample.texts for sample in samples)
    tokenizer = Tokenizer.train(texts, config)
    if tokenizer.vocab_size != config.vocab_size:
        size = tokenizer.vocab_size
        raise ConfigError(
            at="tokenizer.vocab_size",
            got=f"{config.vocab_size}, but the corpus gave {size} ids",
            want="no more ids than the corpus has merges for",
            hint=f"a vocabulary of {size}, of the tokenizer and of its model",
        )
    return tokenizer


def bytes_per_token(tokenizer: Tokenizer, samples: list[Sample]) -> float:
    """Bytes of UTF-8 that a token stands for, over the samples."""
    texts = [text for sample in samples for text in sample.texts]
    ids = sum(map(len, tokenizer.encode_batch(texts)))
    return sum(len(text.encode()) for text in texts) / max(ids, 1)


def draw_samples(data: DataConfig, corpus: CorpusConfig, documents: int) -> list[Sample]:
    """So many documents in all, of each source by its weight, or all that it has. The same ones every time."""
    refuse_no_source(data)
    counts = shares([Fraction(source.weight) for source in data.sources], documents)
    return [
        _procedural(corpus, count)
        if isinstance(source, ProceduralSource)
        else _drawn(source, count, data.max_bad_frac)
        for source, count in zip(data.sources, counts, strict=True)
    ]


def _procedural(corpus: CorpusConfig, count: int) -> Sample:
    texts = list(itertools.islice(documents(corpus, random.Random(0)), count))
    return Sample("procedural", texts, Tally(records=count))


def _drawn(source: FileSource | DatasetSource, count: int, max_bad_frac: float) -> Sample:
    """A reservoir: after any number of stretches, each of them is in it with the same chance."""
    rng, kept, tally = random.Random(0), list[str](), Tally()
    for number, text in enumerate(_stretches(source, tally)):
        if number < count:
            kept.append(text)
        elif (at := rng.randrange(number + 1)) < count:
            kept[at] = text
    tally.refuse(source.where, source.content_field, max_bad_frac)
    return Sample(word_of(source), kept, tally)


def _stretches(source: FileSource | DatasetSource, tally: Tally) -> Iterator[str]:
    """All text of a source; counts the records as it goes."""
    reader = open_source(source)
    for file, record in reader.records(0, 0):
        tally.records += record.is_last_part
        if record.fault:
            tally.add(record.fault, reader.place(file, record.number))
            continue
        text = _text(record.content)
        for start in range(0, len(text), STRETCH_CHARS):
            yield text[start : start + STRETCH_CHARS]
        if tally.records == source.max_records:
            return


def _text(content: Any) -> str:
    """Of a record: itself, or what was said in a dialogue."""
    if isinstance(content, str):
        return content
    said = [
        message.get(key) or "" for message in content for key in ("reasoning_content", "content")
    ]
    return "\n".join(said)
