"""The settings of tokenizer, corpus and packing. Imports no torch."""

from pydantic import Field

from nalar.config import Config, ConfigError
from nalar.tasks.config import ChainSumConfig, CountdownConfig


class TokenizerConfig(Config):
    """A byte-level BPE trained on the corpus itself."""

    vocab_size: int = Field(default=320, ge=261)
    """All ids: 256 bytes, 5 special tokens, and merges for the rest."""
    sample_documents: int = Field(default=4000, ge=1)
    """Documents of the corpus from which merges are learned."""


class DocumentWeights(Config):
    """Shares of the document kinds, by document. Need not add up to 1."""

    facts: float = Field(default=0.12, ge=0)
    """Lists of sums, differences and products."""
    verdicts: float = Field(default=0.24, ge=0)
    """A target and tries at it, each marked as hit or miss."""
    word_problems: float = Field(default=0.02, ge=0)
    conversions: float = Field(default=0.06, ge=0)
    """Between steps and expressions, both ways."""
    search: float = Field(default=0.34, ge=0)
    """Dialogues that search blindly for a Countdown answer."""
    chains: float = Field(default=0.22, ge=0)
    """Dialogues on chain sums."""

    def model_post_init(self, _context: object) -> None:
        if not sum(share for _, share in self) > 0:
            raise ConfigError(
                at="corpus.weights", got="no share above 0", want="at least one kind of document"
            )


class CorpusConfig(Config):
    """The procedural corpus: how much of what, and how bad. Every `_frac` is a probability in [0, 1]."""

    countdown: CountdownConfig = CountdownConfig()
    chain_sum: ChainSumConfig = ChainSumConfig()
    weights: DocumentWeights = DocumentWeights()

    slip_frac: float = 0.01
    """A result that is off by a little."""
    wrong_verdict_frac: float = 0.01
    """A mark that says the opposite of what the result shows."""
    messy_frac: float = 0.03
    """Lists of tries with spaces, with words for marks, or on one line."""

    hit_frac: float = 0.42
    """Lines of a verdict list that reach the target."""
    near_miss_frac: float = 0.1
    """Misses of a verdict list whose result looks like the target."""
    one_step_frac: float = 0.35
    """Verdict lists over two numbers instead of the full count."""
    verdict_from_frac: float = 0.35
    """Verdict lists that name their numbers, and use no others."""

    no_try_frac: float = 0.2
    """Search dialogues that answer at once."""
    mean_tries: float = Field(default=2.0, ge=1)
    """Mean of the geometric number of tries a search has patience for; a hit ends it early."""
    long_search_frac: float = 0.2
    """Searches with the patience of `long_mean_tries` instead."""
    long_mean_tries: float = Field(default=9.0, ge=1)
    """Mean of the geometric number of tries of a long search."""
    max_tries: int = Field(default=17, ge=1)
    """No search is longer."""
    no_repeat_frac: float = 0.5
    """Searches that never make a try twice (where all tries are enumerated)."""
    past_hit_frac: float = 0.1
    """Marked hits after which the search goes on all the same."""
    answer_last_frac: float = 0.6
    """Failed searches that answer with their last try; the others answer at random."""

    chain_blurt_frac: float = 0.4
    """Chain dialogues that answer at once."""
    chain_partial_frac: float = 0.25
    """Chain dialogues that take one or two steps and then guess; the rest are worked through."""
    chain_guess_right_frac: float = 0.3
    """Guessed chain answers that are right."""

    def model_post_init(self, _context: object) -> None:
        for name, value in self:
            if name.endswith("_frac") and not 0 <= value <= 1:
                raise ConfigError(
                    at=f"corpus.{name}", got=str(value), want="a probability between 0 and 1"
                )


class PackingConfig(Config):
    """How documents fill the batch of a training step."""

    step_tokens: int = Field(default=1536, ge=2)
    """Positions that a step trains on, whatever the documents are."""
    document_tokens: int = Field(default=320, ge=2)
    """Longer documents are cut into pieces of this many positions."""
