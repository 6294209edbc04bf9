"""What may be learned from: one small question after another to each sample. Imports no torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nalar.evals.origins import SELF
from nalar.pipeline.collect_config import FilterConfig
from nalar.rl.looping import has_a_loop
from nalar.tasks.language import share_of
from nalar.tasks.problem import Score
from nalar.tasks.text import normalised


@dataclass(frozen=True)
class Draft:
    """A sample on its way into a data set, as it would stand there."""

    thought: str
    answer: str
    thought_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    score: Score
    is_whole: bool
    """Whether thought and turn are closed, and nothing stands where it should not."""
    sample: int
    """Its number among those of its problem, in the order drawn."""
    origin: str = SELF
    rewritten: bool = False

    @property
    def num_tokens(self) -> int:
        """Thought and answer, and what closes each."""
        return len(self.thought_ids) + len(self.answer_ids) + 2


Objects = Callable[[Draft, FilterConfig], bool]
"""Whether a draft is to be left out."""


def verifier_error(draft: Draft, config: FilterConfig) -> bool:
    """Nobody knows whether it is right."""
    return draft.score.error is not None


def not_whole(draft: Draft, config: FilterConfig) -> bool:
    """Cut by the cap, without an answer, or with bytes that are no text."""
    return not draft.is_whole or "\N{REPLACEMENT CHARACTER}" in draft.thought + draft.answer


def wrong(draft: Draft, config: FilterConfig) -> bool:
    return config.correct and not draft.score.correct


def no_thought(draft: Draft, config: FilterConfig) -> bool:
    return config.thought and not draft.thought.strip()


def too_short(draft: Draft, config: FilterConfig) -> bool:
    return config.min_tokens is not None and draft.num_tokens < config.min_tokens


def too_long(draft: Draft, config: FilterConfig) -> bool:
    return config.max_tokens is not None and draft.num_tokens > config.max_tokens


def looping(draft: Draft, config: FilterConfig) -> bool:
    return config.looping and (has_a_loop(draft.thought_ids) or has_a_loop(draft.answer_ids))


def language(draft: Draft, config: FilterConfig) -> bool:
    if config.language is None:
        return False
    return share_of(config.language, draft.thought) < config.min_language_frac


SAMPLED: Mapping[str, Objects] = {
    "verifier_error": verifier_error,
    "not_whole": not_whole,
    "wrong": wrong,
    "no_thought": no_thought,
    "too_short": too_short,
    "too_long": too_long,
    "looping": looping,
}
"""Asked of what was sampled, in this order: the first that objects is the reason."""
FINAL: Mapping[str, Objects] = {
    "language": language,
    "too_short": too_short,
    "too_long": too_long,
    "looping": looping,
}
"""Asked of what would be learned, so behind rewriting, which mends language and may change lengths."""
UNUSABLE, DUPLICATE, SURPLUS = "rewrite", "duplicate", "surplus"
"""Further reasons: what came back from rewriting cannot be used; it was said already; enough of its problem is kept."""


def objection(draft: Draft, config: FilterConfig, asked: Mapping[str, Objects]) -> str | None:
    """Name of the first filter that leaves it out."""
    return next((name for name, objects in asked.items() if objects(draft, config)), None)


def repeats(drafts: Sequence[Draft]) -> list[bool]:
    """Which samples of a problem say what one before them says, but for case and spaces."""
    said: set[str] = set()
    found = []
    for draft in drafts:
        text = f"{normalised(draft.thought)}\n{normalised(draft.answer)}"
        found.append(text in said)
        said.add(text)
    return found


def switched_on(config: FilterConfig) -> list[str]:
    """Names of the filters that a kept sample has passed, for its record."""
    given: Iterable[tuple[str, object]] = (
        ("verifier_error", True),
        ("not_whole", True),
        ("wrong", config.correct),
        ("no_thought", config.thought),
        ("too_short", config.min_tokens),
        ("too_long", config.max_tokens),
        ("looping", config.looping),
        ("language", config.language),
        (DUPLICATE, config.duplicates),
    )
    return [name for name, setting in given if setting]
