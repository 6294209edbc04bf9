"""Settings of evaluation and of the probe. Imports no torch."""

from typing import Literal

from pydantic import Field

from nalar.config import Config, ConfigError

MAX_PROBLEMS = 100_000
"""Of one task in one evaluation: an interval over so many is narrower than any use of it."""


class EvalConfig(Config):
    """How a model is measured."""

    tasks: tuple[str, ...] = ("countdown", "chain_sum")
    """As for `rl.tasks`, each once."""
    problems: int = 256
    """Distinct held-out problems per task, fewer where the split has fewer."""
    k: int = 8
    """Samples per problem: pass@1 is their mean, pass@k and majority@k use all."""
    temperature: float = 1.0
    max_tokens: int = 264
    """Cap on a response."""
    thinking: Literal["on", "off"] = "on"
    """off: asked with the thought closed (docs/thinking.md)."""
    thinking_budget: int | None = Field(default=None, ge=0)
    """Tokens of a thought at most: then the engine closes it, and the answer follows. None: no limit but the cap."""

    def model_post_init(self, _context: object) -> None:
        _at_least_one(self, "evals", "problems", "k", "max_tokens")
        if self.thinking == "off" and self.thinking_budget is not None:
            raise ConfigError(
                at="evals.thinking_budget",
                got=f"{self.thinking_budget} with evals.thinking=off",
                want="None: there is no thought to limit",
            )
        _at_most(self, "evals", problems=MAX_PROBLEMS)
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                at="evals.temperature",
                got=str(self.temperature),
                want="a finite number from 0 (greedy) up",
            )
        if not self.tasks:
            raise ConfigError(at="evals.tasks", got="no task", want="at least one task id")


class ProbeConfig(Config):
    """Is the base ready for RL? It must recognise its own hits on valid problems, or RL unlearns to search."""

    problems: int = 120
    """Valid Countdown problems, the same every time."""
    samples: int = 4
    """Responses to each."""
    max_tokens: int = 264
    min_recall: float = 0.9
    """Share of tries that hit the target and are marked as hits, at least."""
    max_false_frac: float = 0.05
    """Share of tries that miss and are marked as hits, at most."""
    min_hits: int = 40
    """Tries that hit, at least: a share of fewer says nothing."""

    def model_post_init(self, _context: object) -> None:
        _at_least_one(self, "probe", "problems", "samples", "max_tokens")
        _at_most(self, "probe", problems=MAX_PROBLEMS)


def _at_least_one(config: Config, room: str, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if value < 1:
            raise ConfigError(at=f"{room}.{field}", got=str(value), want="at least 1")


def _at_most(config: Config, room: str, **limits: int) -> None:
    for field, limit in limits.items():
        value = getattr(config, field)
        if value > limit:
            raise ConfigError(at=f"{room}.{field}", got=str(value), want=f"at most {limit}")
