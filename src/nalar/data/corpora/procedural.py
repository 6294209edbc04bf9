"""The procedural corpus: an endless stream of short documents, seeded, over train problems only."""

import itertools
import random
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping

from nalar.config import ConfigError
from nalar.data.config import CorpusConfig
from nalar.data.corpora.chains import chain
from nalar.data.corpora.facts import facts, word_problem
from nalar.data.corpora.search import conversions, search, verdicts
from nalar.data.corpora.sources import Sources, sources

Generator = Callable[[random.Random, CorpusConfig, Sources], str]

KINDS: Mapping[str, Generator] = {
    "facts": facts,
    "verdicts": verdicts,
    "word_problems": word_problem,
    "conversions": conversions,
    "search": search,
    "chains": chain,
}
"""By the names of the fields of DocumentWeights."""


def documents(config: CorpusConfig, rng: random.Random) -> Iterator[str]:
    """Documents without end, special tokens as their text. The same state of `rng` gives the same documents."""
    weights = [getattr(config.weights, name) for name in KINDS]
    if min(weights) < 0 or sum(weights) <= 0:
        raise ConfigError(
            at="corpus.weights", got=str(weights), want="weights of 0 or more, not all 0"
        )
    bounds = list(itertools.accumulate(weights))
    generators = list(KINDS.values())
    tables = sources(config)
    while True:
        at = min(bisect(bounds, rng.random() * bounds[-1]), len(generators) - 1)
        yield generators[at](rng, config, tables)
