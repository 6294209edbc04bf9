"""What `nalar collect` asks a model, and which of its samples are kept. Imports no torch."""

from typing import Literal

from pydantic import Field

from nalar.config import Config, ConfigError
from nalar.endpoint import EndpointConfig
from nalar.pipeline.config import RunConfig
from nalar.tasks.language import Language
from nalar.tasks.registry import refuse_unknown_task


class FilterConfig(Config):
    """Which samples are learned from. One without a verdict, and one that is not whole, never is."""

    correct: bool = True
    """Leave out wrong answers."""
    thought: bool = True
    """Leave out replies that do not think: learned from, they would be replies to another way of asking."""
    language: Language | None = None
    """Of the thought, as it will be learned. None: any, and any mixture."""
    min_language_frac: float = Field(default=0.9, gt=0, le=1)
    """Of the small words of a thought, those that are of this language, at least."""
    min_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    """Of a response, thought and answer together. None: no bound."""
    looping: bool = True
    """Leave out what goes round: the same few tokens four times, one after another."""
    duplicates: bool = True
    """Leave out what another sample of the same problem says too, but for case and spaces."""

    def model_post_init(self, _context: object) -> None:
        if self.min_tokens and self.max_tokens and self.min_tokens > self.max_tokens:
            raise ConfigError(
                at="filters.min_tokens",
                got=f"{self.min_tokens} with filters.max_tokens={self.max_tokens}",
                want="no more than that",
            )


class RewriterConfig(Config):
    """Another model that writes thoughts anew, behind a chat API."""

    endpoint: EndpointConfig
    max_tokens: int = Field(default=2048, ge=1)
    """Cap on its reply. One that is cut by it is of no use."""
    max_growth: float = Field(default=4.0, ge=1, le=100)
    """Times the length of what it was given, in characters: a longer reply is of no use."""
    temperature: float = Field(default=0.0, ge=0, le=2)


class CollectConfig(RunConfig):
    """Sample from a model, keep what is good, and write a data set that `nalar sft` reads (docs/collect.md)."""

    recipe: Literal["collect"] = "collect"
    """These settings are of one kind."""
    model: str
    """A run, or a folder with a model and its tokenizer: who is asked."""
    tasks: tuple[str, ...]
    """As for `rl.tasks`, each once. Only their train problems are asked."""
    problems_per_task: int = Field(default=256, ge=1)
    """Distinct ones, fewer where the split has fewer."""
    samples: int = Field(default=4, ge=1)
    """Of each problem."""
    temperature: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=264, ge=1)
    """Cap on a response."""
    keep_per_problem: int = Field(default=1, ge=1)
    """Of the samples that pass, the first ones drawn: neither the short nor the long are favoured."""
    filters: FilterConfig = FilterConfig()
    rewrite: Literal["rule", "judge"] | None = None
    """Thoughts anew, so that they read well. rule: by a program, in `filters.language`. judge: by `rewriter`, another
    model, whose name then stands as the origin. None: as they were sampled."""
    rewriter: RewriterConfig | None = None
    """Where `rewrite` is judge."""
    no_thinking_frac: float = Field(default=0.0, ge=0, le=1)
    """Share of what is kept that stands there once more without its thought, as an answer to being asked so."""
    cut_thought_frac: float = Field(default=0.0, ge=0, le=1)
    """Share of what is kept that stands there once more with its thought cut at a random token, closed and answered all
    the same: what a spent budget looks like."""
    general: tuple[str, ...] = ()
    """Tasks that rate answers: their best ones are mixed in, without a thought."""
    general_per_task: int = Field(default=64, ge=1)
    """Train problems of each."""
    files: tuple[str, ...] = ()
    """Dialogues that are mixed in as they are: files as for `nalar sft --data`."""
    chunk_problems: int = Field(default=16, ge=1)
    """Problems from one save to the next: what a kill costs at most."""

    def model_post_init(self, context: object) -> None:
        RunConfig.model_post_init(self, context)
        if not self.tasks:
            raise ConfigError(at="tasks", got="no task", want="at least one task id")
        for field, words in (("tasks", self.tasks), ("general", self.general)):
            for word in words:
                refuse_unknown_task(word, at=field)
            if len(set(words)) < len(words):
                raise ConfigError(at=field, got=", ".join(words), want="each task once")
        if (self.rewrite == "judge") != (self.rewriter is not None):
            raise ConfigError(
                at="rewriter",
                got=f"{'a model' if self.rewriter else 'none'} with rewrite={self.rewrite}",
                want="a model where rewrite is judge, and none where it is not",
                hint="--judge-url URL --judge-model NAME",
            )
        if self.rewrite == "rule" and self.filters.language is None:
            raise ConfigError(
                at="filters.language",
                got="None with rewrite=rule",
                want="the language that thoughts are to be in",
                hint="--filters.language en",
            )
