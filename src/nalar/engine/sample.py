"""One of the n samples of a request while it is in the engine. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from nalar.engine.lookup import Lookup
from nalar.engine.sequence import (
    Completion,
    FinishReason,
    Grammar,
    PromptLogprob,
    Request,
    Speculated,
    TopLogprobs,
)


@dataclass(slots=True)
class Thought:
    """How far a sample has thought."""

    is_open: bool = False
    may_begin: bool = False
    """The output is empty, and the prompt holds the end of no thought: the model may want to open one."""
    tokens: int = 0
    """Of all thoughts in the output."""
    closing_left: tuple[int, ...] = ()
    """What must come next to close it."""


@dataclass(frozen=True, slots=True)
class Output(Sequence[int]):
    """The ids generated so far, as a view that costs nothing to make."""

    token_ids: list[int]
    start: int

    def __len__(self) -> int:
        return len(self.token_ids) - self.start

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: int | slice) -> int | list[int]:
        places = range(self.start, len(self.token_ids))[at]
        if isinstance(places, int):
            return self.token_ids[places]
        return [self.token_ids[i] for i in places]


@dataclass(eq=False, slots=True)
class Sample:
    """Counts run ahead of what the host knows: steps under way are included in those of the cache."""

    request_id: int
    sample_id: int
    request: Request
    arrival: int
    token_ids: list[int]
    """Prompt and output, as far as the host knows."""
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    """Tokens whose entries are in the cache, or will be when the steps under way are done."""
    num_drawn: int = 0
    """Tokens drawn, those of steps under way included."""
    num_published: int = 0
    """Blocks that were offered to others."""
    content: int = 0
    """Of the last published block."""
    row: int | None = None
    """In the batch. None: it waits."""
    followers: list["Sample"] = field(default_factory=list)
    """Samples of the same request that wait for this one to compute the prompt."""
    num_found: int = 0
    """Tokens whose entries were in the cache when it was last admitted."""
    num_cached: int | None = None
    """Tokens of the prompt found in the cache when the request was first admitted."""
    is_finished: bool = False
    thought: Thought = field(default_factory=Thought)
    grammar: Grammar | None = None
    logprobs: list[float] = field(default_factory=list)
    processed_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprob | None] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    num_new: int = 0
    """Tokens that its last step gave."""
    drafts: list[int] = field(default_factory=list)
    """Guesses that are looked up for the step under way."""
    lookup: Lookup | None = None
    num_draft_steps: int = 0
    num_drafted: int = 0
    num_accepted: int = 0

    num_prompt: int = field(init=False)
    has_rules: bool = field(init=False)
    """Whether the host has a say in single tokens."""
    can_run: bool = field(init=False)
    """Whether several of its tokens can be drawn before the host looks."""

    def __post_init__(self) -> None:
        # Asked for at every step of every sample: no properties.
        self.num_prompt = len(self.request.prompt_ids)
        self.has_rules = self.request.has_rules
        self.can_run = not self.has_rules and self.request.params.logprobs is None

    @property
    def rank(self) -> tuple[int, int]:
        """Lower goes first."""
        return self.request.priority, self.arrival

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]

    @property
    def output(self) -> Output:
        """What rules and matchers see, which come too often for a copy."""
        return Output(self.token_ids, self.num_prompt)

    @property
    def num_tokens(self) -> int:
        """Of prompt and output, those that are under way included."""
        return self.num_prompt + self.num_drawn

    @property
    def is_decoding(self) -> bool:
        """Whether the newest token alone is not computed."""
        return self.num_drawn > 0 and self.num_computed == self.num_tokens - 1

    @property
    def is_complete(self) -> bool:
        """Whether no token is left to draw, though the host may not know the last ones yet."""
        return self.num_drawn >= self.request.params.max_tokens

    @property
    def needs_host(self) -> bool:
        """Whether the host must know all tokens before the next can be drawn."""
        if not self.has_rules:
            return False
        if self.grammar is not None or self.request.banned_tokens is not None:
            return True
        thinking = self.request.params.thinking
        if thinking is None or thinking.budget_tokens is None:
            return False
        thought, budget = self.thought, thinking.budget_tokens
        ahead = self.num_tokens - len(self.token_ids)
        if not thought.is_open:
            # The first unknown token may begin a thought, unless the budget is spent: then it is banned.
            return thought.tokens < budget <= thought.tokens + ahead - 1
        return thought.tokens + ahead >= budget

    @property
    def is_ruled(self) -> bool:
        """Whether the host's say in the next token depends on all tokens before it."""
        if self.thought.closing_left or self.request.banned_tokens is not None:
            return True
        return self.grammar is not None and not self.thought.is_open

    @property
    def may_draw(self) -> bool:
        """Whether the host has its say ready; what it says of thoughts it knows at once."""
        may_draw = self.request.may_draw
        return may_draw is None or self.thought.is_open or may_draw()

    @property
    def draft_room(self) -> int:
        """How many guesses could be accepted in the next step. All tokens so far are known."""
        params = self.request.params
        if self.is_ruled or params.has_penalties:
            return 0
        room = params.max_tokens - self.num_drawn - 1
        # What holds for the first token of a step holds for all.
        held = params.min_tokens - self.num_drawn
        return room if held <= 0 else min(room, held - 1)

    def completion(self, finish_reason: FinishReason, policy_version: int) -> Completion:
        is_own = self.request.params.is_plain and not self.has_rules
        return Completion(
            tuple(self.output_ids),
            tuple(self.logprobs),
            finish_reason,
            policy_version,
            () if is_own else tuple(self.processed_logprobs),
            tuple(self.top_logprobs),
            tuple(self.prompt_logprobs),
            tuple(self.forced),
            self.num_cached or 0,
            Speculated(self.num_draft_steps, self.num_drafted, self.num_accepted)
            if self.num_draft_steps
            else None,
        )
