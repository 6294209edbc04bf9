"""What goes into the engine and what comes out: token ids in, token ids and logprobs out. Imports no torch."""

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from pydantic import Field

from nalar.config import Config, ConfigError, UserError

FinishReason = Literal["stop", "length", "abort"]

BannedTokens = Callable[[Seq[int]], Seq[int]]
"""Given the ids generated so far, the ids that may not come next. The engine knows nothing of text."""

StopMatcher = Callable[[Seq[int]], bool]
"""Given the ids generated so far, whether to stop here."""


class Grammar(Protocol):
    """What may come next, as a state of its own: one for each sample. It sees nothing of thoughts."""

    def accept(self, token_id: int) -> None:
        """The next id of the answer."""
        ...

    def allowed(self) -> bytes | None:
        """What may follow: bit `i % 8` of byte `i // 8` for id i, ids beyond the last byte not. None: anything.

        UserError where the grammar can go no further.
        """
        ...


class ThinkingParams(Config):
    """How long a sample may think."""

    start_id: int = Field(ge=0)
    end_id: int = Field(ge=0)
    """Between these two stands the thought; a prompt may have opened it."""
    budget_tokens: int | None = Field(default=None, ge=0)
    """Tokens of thought in the output, of all thoughts together, neither these two ids nor the closing counted.

    After that many the closing comes, whatever the model would say, and no other thought begins. None: no limit.
    """
    closing_ids: tuple[int, ...] = ()
    """What closes it, `end_id` last. Empty: `end_id` alone."""

    def model_post_init(self, _context: object) -> None:
        if self.start_id == self.end_id:
            raise ConfigError(
                at="thinking.end_id",
                got=f"{self.end_id}, which start_id is too",
                want="two ids of their own",
            )
        if self.closing_ids and self.closing_ids[-1] != self.end_id:
            raise ConfigError(
                at="thinking.closing_ids",
                got=str(self.closing_ids),
                want=f"ids of which end_id={self.end_id} is the last, or none",
            )

    @property
    def closing(self) -> tuple[int, ...]:
        return self.closing_ids or (self.end_id,)

    def count(self, prompt_ids: Seq[int], token_ids: Seq[int], forced: Seq[int] = ()) -> int:
        """Tokens of thought among the ids behind a prompt, by what counts against the budget: those of the places
        `forced`, such as a closing or a tool's output, were not drawn and do not."""
        marks, given = (self.start_id, self.end_id), set(forced)
        is_open = next((i for i in reversed(prompt_ids) if i in marks), None) == self.start_id
        tokens = 0
        for place, token_id in enumerate(token_ids):
            if is_open:
                is_open = token_id != self.end_id
                tokens += is_open and place not in given
            else:
                is_open = token_id == self.start_id
        return tokens

    def after(self, tokens: int) -> "ThinkingParams":
        """For whoever goes on with a sample that has thought so many tokens."""
        if self.budget_tokens is None:
            return self
        return self.model_copy(update={"budget_tokens": max(0, self.budget_tokens - tokens)})


class SamplingParams(Config):
    """How to sample one request. Names and meanings as in vLLM."""

    n: int = 1
    """Samples per request; the prompt is prefilled once for all of them."""
    max_tokens: int = 256
    """Cap on generated tokens, the stop token included."""
    min_tokens: int = 0
    """A stop token or match counts only behind this many tokens; stop tokens are not drawn before."""
    temperature: float = 1.0
    """0: greedy."""
    top_p: float = 1.0
    """1: off."""
    top_k: int | None = None
    """None: off."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest are cut. 0: off."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    """Taken off the logits of ids generated before: once, and once for each time."""
    repetition_penalty: float = 1.0
    """Divides positive logits of ids in prompt or output, multiplies negative ones. 1: off."""
    logit_bias: Mapping[int, float] = {}
    """Added to the logits of these ids."""
    stop_token_ids: tuple[int, ...] = ()
    """Sampling one of these ends the sequence; it stays in the output."""
    seed: int = 0
    """Sample i of a request draws from a stream of its own, set by (seed, i) and nothing else in the batch."""
    logprobs: int | None = None
    """How many of the likeliest ids to report beside each drawn one, by the model's own distribution."""
    prompt_logprobs: int | None = None
    """The same for the prompt, which then is computed in full, cached or not."""
    thinking: ThinkingParams | None = None
    """None: the engine does not know what a thought is. Where it does, a grammar holds outside of thoughts alone."""

    def model_post_init(self, _context: object) -> None:
        at_least_1, from_0 = "at least 1", "from 0 up, or None (off)"
        biases = self.logit_bias.items()
        checks = (
            ("n", 1 <= self.n <= 16384, "from 1 to 16384"),
            ("max_tokens", self.max_tokens >= 1, at_least_1),
            (
                "min_tokens",
                0 <= self.min_tokens <= self.max_tokens,
                f"from 0 to max_tokens={self.max_tokens}",
            ),
            ("temperature", 0 <= self.temperature < math.inf, "a number from 0 (greedy) up"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1 (1: off)"),
            ("top_k", self.top_k is None or self.top_k >= 1, f"{at_least_1}, or None (off)"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (off) to 1"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "from -2 to 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "from -2 to 2"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0 (1: off)"),
            ("stop_token_ids", all(t >= 0 for t in self.stop_token_ids), "token ids from 0 up"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, from_0),
            ("prompt_logprobs", self.prompt_logprobs is None or self.prompt_logprobs >= 0, from_0),
            (
                "logit_bias",
                all(t >= 0 and math.isfinite(bias) for t, bias in biases),
                "token ids from 0 up with finite numbers (an id is banned by -100, as at OpenAI)",
            ),
        )
        for name, is_good, want in checks:
            if not is_good:
                raise ConfigError(at=f"sampling.{name}", got=str(getattr(self, name)), want=want)

    @property
    def has_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)

    @property
    def cuts(self) -> bool:
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0

    @property
    def is_plain(self) -> bool:
        """Whether tokens are drawn from the model's own distribution, rules apart."""
        return self.temperature == 1 and not self.cuts and not self.has_penalties


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    banned_tokens: BannedTokens | None = None
    stop_matcher: StopMatcher | None = None
    make_grammar: Callable[[], Grammar] | None = None
    """Called once for each sample. The end of the turn must be among the stop tokens."""
    may_draw: Callable[[], bool] | None = None
    """Asked before each step outside of thoughts: while it says no, samples miss it, and others go on. None: always."""
    priority: int = 0
    """Lower is sooner, as in vLLM; of equal ones the first come."""
    cache_salt: str = ""
    """Only requests of one salt share cached prompts."""
    first_stream: int = 0
    """Sample i draws from stream `first_stream + i` of the seed: who goes on with sample j of an earlier request, its
    tokens now part of the prompt, says j and gets the numbers that would have come next."""

    @property
    def has_rules(self) -> bool:
        """Whether the host has a say in single tokens."""
        p = self.params
        rules = (self.banned_tokens, self.make_grammar, p.logit_bias, p.min_tokens, p.thinking)
        return any(bool(rule) for rule in rules)

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise UserError(at="request.prompt_ids", got="no tokens", want="at least one token id")


TopLogprobs = tuple[tuple[int, float], ...]
"""Ids and their logprobs, the likeliest first."""


@dataclass(frozen=True)
class PromptLogprob:
    """One token of a prompt, by the model's own distribution; the first token has none."""

    logprob: float
    rank: int
    """1: the likeliest."""
    top: TopLogprobs


@dataclass(frozen=True)
class Speculated:
    """How guessing went."""

    steps: int
    """Steps in which something was guessed."""
    drafted: int
    """Tokens guessed."""
    accepted: int
    """Guesses that the model drew too."""

    @property
    def accepted_length(self) -> float:
        """Mean tokens that one of those steps gave, the model's own included: from 1 up."""
        return 1 + self.accepted / self.steps if self.steps else 1.0

    def __add__(self, other: "Speculated") -> "Speculated":
        return Speculated(
            self.steps + other.steps,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
        )


@dataclass(frozen=True)
class Completion:
    """One finished sample."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each token under the model's own distribution (temperature 1, nothing cut or banned)."""
    finish_reason: FinishReason
    policy_version: int
    processed_logprobs: tuple[float, ...] = ()
    """The same under the distribution it was drawn from; empty where that is the model's own. Greedy: 0."""
    top_logprobs: tuple[TopLogprobs, ...] = ()
    prompt_logprobs: tuple[PromptLogprob | None, ...] = ()
    forced: tuple[int, ...] = ()
    """Places in `token_ids` that were not drawn: the closing of a thought that was too long."""
    num_cached_tokens: int = 0
    """Tokens of the prompt whose entries were found in the cache."""
    speculated: Speculated | None = field(default=None, compare=False)
    """None: nothing was guessed. It says how the tokens were found, not what they are."""


class Event(NamedTuple):
    """What a step brought for one sample of a request."""

    request_id: int
    sample_id: int
    token_ids: tuple[int, ...]
    """New ones."""
    logprobs: tuple[float, ...]
    completion: Completion | None = None
    """Once it is finished."""
    error: Exception | None = None
    """Why it ended without a completion: its own rule raised this, or did not hold."""
    tops: tuple[TopLogprobs, ...] = ()
    """Beside each new one, where the request asked for any."""
    num_cached: int = 0
    """Tokens of the prompt found in the cache."""
