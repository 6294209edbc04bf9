"""The procedural corpus: an endless stream of short documents, seeded, over train problems only."""

import itertools
import random
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping

from nalar.config import ConfigError
from nalar.data.config import CorpusConfig
from nalar.data.corpora.calls import Calls, echo
from nalar.data.corpora.chained_calls import ChainedCalls
from nalar.data.corpora.chains import chain
from nalar.data.corpora.facts import facts, word_problem
from nalar.data.corpora.lessons import taught
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
    makers = [*_of_countdown_and_chains(config), *_of_lessons(config), *_of_calls(config)]
    weights = [weight for weight, _ in makers]
    if min(weights) < 0 or sum(weights) <= 0:
        raise ConfigError(
            at="corpus.weights", got=str(weights), want="weights of 0 or more, not all 0"
        )
    bounds = list(itertools.accumulate(weights))
    while True:
        at = min(bisect(bounds, rng.random() * bounds[-1]), len(makers) - 1)
        yield makers[at][1](rng)


Maker = Callable[[random.Random], str]


def _of_countdown_and_chains(config: CorpusConfig) -> list[tuple[float, Maker]]:
    """Kinds by weight. Where none of them is wanted their tables are not made."""
    weights = [getattr(config.weights, name) for name in KINDS]
    if not any(weights):
        return []
    tables = sources(config)

    def maker(kind: Generator) -> Maker:
        return lambda rng: kind(rng, config, tables)

    return list(zip(weights, map(maker, KINDS.values()), strict=True))


def _of_lessons(config: CorpusConfig) -> list[tuple[float, Maker]]:
    found: list[tuple[float, Maker]] = []
    for lesson in config.lessons:
        given = taught(lesson)
        found.append((lesson.attempts, given.attempt))
        if lesson.pieces:
            found.append((lesson.pieces, given.pieces))
    return found


def _of_calls(config: CorpusConfig) -> list[tuple[float, Maker]]:
    found: list[tuple[float, Maker]] = []
    if config.calls is not None:
        calls = Calls(config.calls)
        found += [(config.calls.share, calls.dialogue), (config.calls.echo_share, echo)]
    if config.chained_calls is not None:
        chained = ChainedCalls(config.chained_calls)
        found += [
            (config.chained_calls.share, chained.dialogue),
            (config.chained_calls.echo_share, echo),
        ]
    return found
