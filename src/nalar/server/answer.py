"""An ask becomes a request to the engine, and what the engine draws becomes pieces of thought, answer and calls."""

import codecs
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nalar.config import UserError
from nalar.server.ask import Ask, Ended, GrammarSpec, Piece, Said, Scored, TokenLogprob, Usage
from nalar.server.dialects.dialect import Dialect, TextTokenizer
from nalar.server.dialects.reader import Prompt
from nalar.server.dialects.text import find_first, num_safe
from nalar.server.engine.link import Engine
from nalar.server.engine.messages import EngineRequest, Event

FORGED_SEED_BITS = 62


class ContextTooLong(UserError):
    """A prompt that leaves no room for an answer."""


class Reads(Protocol):
    """Ids of one choice in, pieces out."""

    num_thought_tokens: int
    num_calls: int
    stopped: str | None

    def feed(self, ids: Sequence[int], logprobs: Sequence[TokenLogprob] = ()) -> list[Piece]: ...
    def finish(self, *, cut: bool) -> list[Piece]: ...


@dataclass(frozen=True)
class Prepared:
    """An ask that the engine can take."""

    ask: Ask
    request: EngineRequest
    make_reader: Callable[[int], Reads]
    """Of a choice, by its index in the reply."""

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def max_completion(self) -> int:
        """Tokens of all choices together, at most."""
        return self.request.params.n * self.request.params.max_tokens


def prepare(ask: Ask, dialect: Dialect, max_model_len: int) -> Prepared:
    """UserError for what template or context refuses. A `max_tokens` beyond the context is cut to it."""
    if ask.messages is None:
        return _of_ids(ask, dialect, max_model_len)
    prompt = prompt_of(ask, dialect)
    with_tools = bool(ask.tools) and ask.tool_choice.mode != "none"
    thinking = dialect.thinking_params(ask.thinking.budget_tokens)
    # What the engine looks for it looks for everywhere but in thoughts that have ids; the reader knows better where
    # a stop string does not count.
    by_engine = ask.stop if not with_tools and (thinking or not dialect.knows_thoughts) else ()
    grammar = _grammar(ask, dialect)
    if ask.thinking.budget_tokens is None and grammar is None and not by_engine:
        thinking = None  # nothing depends on where a thought ends, so the engine may draw several tokens a step
    request = EngineRequest(
        prompt.ids,
        ask.params.model_copy(
            update={
                "max_tokens": _room(ask, len(prompt.ids), max_model_len),
                "stop_token_ids": _stop_ids(ask, dialect),
                "thinking": thinking,
            }
        ),
        by_engine,
        grammar,
        ask.cache_salt,
        ask.priority,
        ask.owner,
    )

    def reader(choice: int) -> Reads:
        return dialect.reader(prompt, with_tools=with_tools, stop=ask.stop, choice=choice)

    return Prepared(ask, _checked(request, dialect.tokenizer.vocab_size), reader)


def prompt_of(ask: Ask, dialect: Dialect) -> Prompt:
    """Its messages as the model reads them, however long. UserError for what the template refuses."""
    return dialect.prompt(
        ask.messages or (),
        () if ask.tool_choice.mode == "none" else ask.tools,
        ask.thinking.enabled,
        add_generation_prompt=ask.add_generation_prompt,
        continue_final_message=ask.continue_final_message,
        kwargs=ask.template_kwargs,
    )


def _of_ids(ask: Ask, dialect: Dialect, max_model_len: int) -> Prepared:
    """Of a prompt that is to be continued as it stands."""
    params = ask.params.model_copy(
        update={
            "max_tokens": _room(ask, len(ask.prompt_ids), max_model_len),
            "stop_token_ids": _stop_ids(ask, dialect),
        }
    )
    request = EngineRequest(
        ask.prompt_ids,
        params,
        ask.stop,
        _grammar(ask, dialect),
        ask.cache_salt,
        ask.priority,
        ask.owner,
    )
    return Prepared(
        ask,
        _checked(request, dialect.tokenizer.vocab_size),
        lambda choice: PlainReader(dialect.tokenizer, ask.stop, choice),
    )


def _stop_ids(ask: Ask, dialect: Dialect) -> tuple[int, ...]:
    own = () if ask.ignore_eos else dialect.stop_ids
    return (*own, *ask.params.stop_token_ids)


def _room(ask: Ask, num_prompt: int, max_model_len: int) -> int:
    room = max_model_len - num_prompt
    if room < 1:
        raise ContextTooLong(
            at="messages" if ask.messages is not None else "prompt",
            got=f"{num_prompt} tokens",
            want=f"room for an answer: this model's maximum context length is {max_model_len} tokens",
        )
    # The engine draws one at least.
    return room if ask.max_tokens is None else max(min(ask.max_tokens, room), 1)


def _checked(request: EngineRequest, vocab_size: int) -> EngineRequest:
    """What a copy of the parameters does not look at, and what the engine would refuse later."""
    params = request.params
    if params.min_tokens > params.max_tokens:
        want = f"at most max_tokens={params.max_tokens}, or what the context leaves"
        raise UserError(at="min_tokens", got=str(params.min_tokens), want=want)
    for name, ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.logit_bias)):
        if (largest := max(ids, default=0)) >= vocab_size:
            raise UserError(at=name, got=str(largest), want=f"token ids below {vocab_size}")
    return request


def _grammar(ask: Ask, dialect: Dialect) -> GrammarSpec | None:
    tools = ask.tools if ask.messages is not None else ()
    return dialect.grammar(tools, ask.tool_choice, ask.response_format, ask.parallel_tool_calls)


class PlainReader:
    """Text as it comes, no mark read. Special ids give no text; a piece names them all the same."""

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str], choice: int) -> None:
        self._tokenizer, self._stop, self._choice = tokenizer, tuple(stop), choice
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self.num_thought_tokens = self.num_calls = 0
        self.stopped: str | None = None

    def feed(self, ids: Sequence[int], logprobs: Sequence[TokenLogprob] = ()) -> list[Piece]:
        if self.stopped is not None:
            return []
        for token_id in ids:
            is_text = token_id not in self._tokenizer.special_ids
            written = self._tokenizer.token_bytes(token_id) if is_text else b""
            self._text += self._decoder.decode(written)
        self._ids += ids
        self._logprobs += logprobs
        found = find_first(self._text, self._stop)
        if found is not None:
            self.stopped = found[1]
            return self._say(found[0])
        size = num_safe(self._text, self._stop)
        return self._say(size) if size else []

    def finish(self, *, cut: bool) -> list[Piece]:
        if self.stopped is not None:
            return []
        self._text += self._decoder.decode(b"", final=True)
        return self._say(len(self._text)) if self._text or self._ids else []

    def _say(self, size: int) -> list[Piece]:
        text, self._text = self._text[:size], self._text[size:]
        ids, self._ids = tuple(self._ids), []
        logprobs, self._logprobs = tuple(self._logprobs), []
        return [Piece(self._choice, "answer", text, token_ids=ids, logprobs=logprobs)]


@dataclass(eq=False)
class _Choice:
    reader: Reads
    is_over: bool = False


@dataclass
class Tally:
    """Tokens of a request so far, all choices together: what is counted if it is broken off."""

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    readers: list[Reads] = field(default_factory=list)

    @property
    def reasoning_tokens(self) -> int:
        return sum(reader.num_thought_tokens for reader in self.readers)

    def count(self, event: Event, num_read: int) -> None:
        """num_read: of its tokens, as `_read` has it."""
        self.completion_tokens += num_read
        if event.choice == 0:  # the others share its prompt
            self.cached_tokens = max(self.cached_tokens, event.num_cached)

    def usage(self) -> Usage:
        return Usage(
            self.prompt_tokens, self.cached_tokens, self.completion_tokens, self.reasoning_tokens
        )


async def answer(
    prepared: Prepared, engine: Engine, *, first_choice: int = 0, tally: Tally | None = None
) -> AsyncGenerator[Said]:
    """What the model says: pieces of each choice in order, its end, and Usage last.

    first_choice: index of the first of its n choices in the reply. tally: counts along, for who may not see the end.
    Errors are those of `Engine.stream`.
    """
    tally = tally or Tally(prepared.num_prompt)
    choices = [
        _Choice(prepared.make_reader(first_choice + i)) for i in range(prepared.request.params.n)
    ]
    tally.readers += [choice.reader for choice in choices]
    unread: list[Event] = []
    try:
        async with aclosing(engine.stream(prepared.request, unread)) as events:
            async for event in events:
                choice = choices[event.choice]
                if choice.is_over:
                    continue
                if prepared.ask.max_tokens == 0:
                    event = _without_tokens(event)
                pieces, num_read = _read(prepared, choice.reader, event)
                tally.count(event, num_read)
                for said in _said(prepared, choice, event, pieces, first_choice + event.choice):
                    yield said
                if all(choice.is_over for choice in choices):
                    break
    finally:
        for event in unread:  # the engine was ahead of a reader who is gone
            if not (choice := choices[event.choice]).is_over:
                _, num_read = _read(prepared, choice.reader, event)
                tally.count(event, num_read)
    yield tally.usage()


def _without_tokens(event: Event) -> Event:
    return event._replace(token_ids=(), logprobs=(), tops=(), stop_id=None)


def _read(prepared: Prepared, reader: Reads, event: Event) -> tuple[list[Piece], int]:
    """Its pieces, and its tokens up to where the reader ends it: how many come behind that hangs on how fast somebody
    reads, and what he pays must not."""
    ask, logprobs = prepared.ask, _logprobs(prepared, event)
    is_one_call = bool(ask.tools) and not ask.parallel_tool_calls
    if not is_one_call and (not ask.stop or prepared.request.stop):  # the engine stops by itself
        return reader.feed(event.token_ids, logprobs), len(event.token_ids)
    pieces: list[Piece] = []
    num_read = 0
    while num_read < len(event.token_ids) and reader.stopped is None:
        end = num_read + 1
        new = reader.feed(event.token_ids[num_read:end], logprobs[num_read:end])
        pieces += new
        num_read = end
        if is_one_call and any(one.kind == "call_end" for one in new):
            break
    return pieces, num_read


def _said(
    prepared: Prepared, choice: _Choice, event: Event, read: Sequence[Piece], index: int
) -> list[Said]:
    reader = choice.reader
    pieces: list[Said] = list(read)
    if event.prompt_logprobs:
        pieces.append(Scored(index, event.prompt_logprobs))
    is_cut = event.finish_reason == "length" and reader.stopped is None
    choice.is_over = event.finish_reason is not None or reader.stopped is not None
    if choice.is_over:
        pieces += reader.finish(cut=is_cut or reader.stopped is not None)
    if not prepared.ask.parallel_tool_calls:
        ends = (
            i for i, one in enumerate(pieces) if isinstance(one, Piece) and one.kind == "call_end"
        )
        if (end := next(ends, None)) is not None:
            pieces, choice.is_over, is_cut = pieces[: end + 1], True, False
    if not choice.is_over:
        return pieces
    stop: str | int | None = reader.stopped
    if stop is None and event.stop_id in prepared.ask.params.stop_token_ids:
        stop = event.stop_id
    ended: Literal["stop", "tool_calls"] = "tool_calls" if reader.num_calls else "stop"
    return [*pieces, Ended(index, "length" if is_cut else ended, stop)]


def _logprobs(prepared: Prepared, event: Event) -> list[TokenLogprob]:
    if prepared.ask.params.logprobs is None:
        return []
    tops = event.tops or ((),) * len(event.token_ids)
    return list(map(TokenLogprob, event.token_ids, event.logprobs, tops))


def random_seed() -> int:
    return secrets.randbits(FORGED_SEED_BITS)
