"""What the host has a say in: bans, biases, grammars, and thoughts that must end. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from nalar.config import UserError
from nalar.engine.sample import Sample, Thought
from nalar.engine.sequence import ThinkingParams


@dataclass(frozen=True, slots=True)
class Ruling:
    """Of one sample's next token."""

    forced: int | None = None
    """It comes whatever the model would say; then nothing else counts."""
    bias: dict[int, float] = field(default_factory=dict)
    banned: Sequence[int] = ()
    allowed: Sequence[bool] | None = None
    """One for each id; None: all."""


def ruling(sample: Sample, vocab_size: int) -> Ruling:
    """What holds for the token that this sample draws next; all tokens before it are known, where that matters."""
    request, params = sample.request, sample.request.params
    if sample.thought.closing_left:
        return Ruling(forced=sample.thought.closing_left[0])
    banned: list[int] = []
    if sample.num_drawn <= params.min_tokens:  # the one to be drawn is counted already
        banned += params.stop_token_ids
    if request.banned_tokens is not None:
        banned += request.banned_tokens(tuple(sample.output_ids))
    allowed = None
    if sample.grammar is not None and not sample.thought.is_open:
        allowed = sample.grammar.allowed(sample.output_ids)
        if allowed is not None and not any(allowed):
            raise UserError(
                at="request.grammar", got="no token that may come next", want="at least one"
            )
    if len(set(banned)) >= vocab_size or any(not 0 <= i < vocab_size for i in banned):
        raise UserError(
            at="request.banned_tokens",
            got=f"{len(set(banned))} ids from {min(banned)} to {max(banned)}",
            want=f"ids from 0 to {vocab_size - 1} (the vocabulary), not all of them",
        )
    return Ruling(bias=dict(params.logit_bias), banned=banned, allowed=allowed)


def begin_thought(sample: Sample) -> None:
    """The state in which a prompt leaves its thought."""
    thinking = sample.request.params.thinking
    if thinking is not None:
        for token in sample.request.prompt_ids:
            _read(sample.thought, thinking, token)
        _limit(sample.thought, thinking)


def go_on_thinking(sample: Sample, token: int) -> None:
    """One more token of the output."""
    thinking = sample.request.params.thinking
    if thinking is None:
        return
    if sample.thought.closing_left:
        sample.thought.closing_left = sample.thought.closing_left[1:]
        if not sample.thought.closing_left:
            sample.thought.is_open = False
        return
    _read(sample.thought, thinking, token)
    _limit(sample.thought, thinking)


def _read(thought: Thought, thinking: ThinkingParams, token: int) -> None:
    if token == thinking.end_id:
        thought.is_open = False
    elif token == thinking.start_id:
        thought.is_open, thought.tokens = True, 0
    elif thought.is_open:
        thought.tokens += 1


def _limit(thought: Thought, thinking: ThinkingParams) -> None:
    budget = thinking.budget_tokens
    if thought.is_open and budget is not None and thought.tokens >= budget:
        thought.closing_left = thinking.closing
