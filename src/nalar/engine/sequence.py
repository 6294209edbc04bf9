"""What goes into the engine and what comes out: token ids in, token ids and logprobs out. Imports no torch."""

from collections.abc import Callable, Sequence as Seq
from dataclasses import dataclass
from typing import Literal

from nalar.config import Config

FinishReason = Literal["stop", "length", "abort"]

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


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    banned_tokens: BannedTokens | None = None


@dataclass(frozen=True)
class Completion:
    """One finished sample."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each token under the model's own distribution (temperature 1, nothing cut or banned)."""
    finish_reason: FinishReason
    policy_version: int
