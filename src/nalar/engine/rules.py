"""What the host has a say in: bans, biases, grammars, and thoughts that must end. Imports no torch."""

from collections.abc import Set
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
    banned: Set[int] = frozenset()
    allowed: bytes | None = None
    """One bit for each id, as `Grammar.allowed` gives them; None: all."""


def begin(sample: Sample) -> None:
    """The state in which a prompt leaves its thought."""
    thinking, thought = sample.request.params.thinking, sample.thought
    if thinking is None:
        return
    marks = (thinking.start_id, thinking.end_id)
    last = next((token for token in reversed(sample.request.prompt_ids) if token in marks), None)
    thought.is_open = last == thinking.start_id
    thought.may_begin = thinking.end_id not in sample.request.prompt_ids
    _limit(thought, thinking)


def follow(sample: Sample, token: int) -> None:
    """One more token of the output."""
    thinking, thought = sample.request.params.thinking, sample.thought
    thought.may_begin = False
    if thinking is not None and _think(thought, thinking, token):
        _limit(thought, thinking)
    elif sample.grammar is not None:
        sample.grammar.accept(token)


def phase(sample: Sample) -> tuple[bool, bool, bool]:
    """As long as it stays, tokens drawn side by side are ruled alike. Only for samples that may be guessed for."""
    thinking, thought = sample.request.params.thinking, sample.thought
    is_spent = thinking is not None and _is_spent(thought, thinking)
    return thought.is_open, bool(thought.closing_left), is_spent


def ruling(sample: Sample, vocab_size: int) -> Ruling:
    """What holds for the token that this sample draws next; all before it are known, where that matters.

    UserError where nothing could come.
    """
    if sample.thought.closing_left:
        return Ruling(forced=sample.thought.closing_left[0])
    params = sample.request.params
    banned = _banned(sample, vocab_size)
    allowed = None
    if sample.grammar is not None and not sample.thought.is_open:
        allowed = sample.grammar.allowed()
        if allowed is not None and params.thinking is not None and sample.thought.may_begin:
            allowed = _with(allowed, params.thinking.start_id)
    num_left = vocab_size - len(banned) if allowed is None else _count(allowed, banned, vocab_size)
    if num_left == 0:
        raise UserError(
            at="request.make_grammar" if allowed is not None else "request.banned_tokens",
            got=f"no token that may come after {len(sample.output)}",
            want="at least one that is allowed and not banned",
        )
    return Ruling(bias=dict(params.logit_bias), banned=banned, allowed=allowed)


def _banned(sample: Sample, vocab_size: int) -> Set[int]:
    request, params = sample.request, sample.request.params
    banned: set[int] = set()
    if sample.num_drawn <= params.min_tokens:  # the one to be drawn is counted already
        banned |= set(params.stop_token_ids)
    thinking, thought = params.thinking, sample.thought
    if thinking is not None and not thought.is_open and _is_spent(thought, thinking):
        banned.add(thinking.start_id)
    if request.banned_tokens is not None:
        banned |= set(request.banned_tokens(sample.output))
    if banned and not 0 <= min(banned) <= max(banned) < vocab_size:
        raise UserError(
            at="request.banned_tokens",
            got=f"ids from {min(banned)} to {max(banned)}",
            want=f"ids from 0 to {vocab_size - 1}, the model's vocabulary",
        )
    return banned


def _think(thought: Thought, thinking: ThinkingParams, token: int) -> bool:
    """Go on by one token; whether it is of a thought, its two marks and its closing included."""
    if thought.closing_left:
        thought.closing_left = thought.closing_left[1:]
        thought.is_open = bool(thought.closing_left)
    elif thought.is_open:
        thought.is_open = token != thinking.end_id
        thought.tokens += thought.is_open
    elif token == thinking.start_id:
        thought.is_open = True
    else:
        return False
    return True


def _limit(thought: Thought, thinking: ThinkingParams) -> None:
    if thought.is_open and not thought.closing_left and _is_spent(thought, thinking):
        thought.closing_left = thinking.closing


def _is_spent(thought: Thought, thinking: ThinkingParams) -> bool:
    return thinking.budget_tokens is not None and thought.tokens >= thinking.budget_tokens


def _with(allowed: bytes, token: int) -> bytes:
    bits = bytearray(allowed.ljust(token // 8 + 1, b"\0"))
    bits[token // 8] |= 1 << token % 8
    return bytes(bits)


def _count(allowed: bytes, banned: Set[int], vocab_size: int) -> int:
    """How many ids may come."""
    bits = int.from_bytes(allowed, "little") & ((1 << vocab_size) - 1)
    held = sum(allowed[i // 8] >> i % 8 & 1 for i in banned if i // 8 < len(allowed))
    return bits.bit_count() - held
