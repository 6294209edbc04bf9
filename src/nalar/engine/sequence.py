"""What goes into the engine and what comes out: token ids in, token ids and logprobs out. Imports no torch."""

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

from nalar.config import Config, ConfigError, UserError

FinishReason = Literal["stop", "length"]

BannedTokens = Callable[[Seq[int]], Seq[int]]
"""Given the ids generated so far, the ids that may not come next. The engine knows nothing of text."""


class SamplingParams(Config):
    """How to sample one request. Names and meanings as in vLLM."""

    n: int = 1
    """Samples per request; the prompt is prefilled once for all of them."""
    max_tokens: int = 256
    """Cap on generated tokens, the stop token included."""
    temperature: float = 1.0
    """0: greedy."""
    top_p: float = 1.0
    top_k: int | None = None
    """None: off."""
    stop_token_ids: tuple[int, ...] = ()
    """Sampling one of these ends the sequence; it stays in the output."""
    seed: int = 0
    """Sample i of a request draws from a stream of its own, set by (seed, i) and nothing else in the batch."""

    def model_post_init(self, _context: object) -> None:
        checks = (
            ("n", self.n >= 1, "at least 1"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            (
                "temperature",
                self.temperature >= 0 and math.isfinite(self.temperature),
                "a finite number from 0 (greedy) up",
            ),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1 (1: off)"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or None (off)"),
            ("stop_token_ids", all(t >= 0 for t in self.stop_token_ids), "token ids from 0 up"),
        )
        for name, is_good, want in checks:
            if not is_good:
                raise ConfigError(at=f"sampling.{name}", got=str(getattr(self, name)), want=want)


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    banned_tokens: BannedTokens | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise UserError(at="request.prompt_ids", got="no tokens", want="at least one token id")


@dataclass(frozen=True)
class Completion:
    """One finished sample."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each token under the model's own distribution (temperature 1, nothing cut or banned)."""
    finish_reason: FinishReason
    policy_version: int
