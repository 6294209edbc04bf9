"""`/v1/completions`: prompts of text or ids, one or many, with echo and logprobs as lm-eval reads them.

Imports no torch.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, cast

from pydantic import Field

from nalar.engine.sequence import TopLogprobs
from nalar.server.ask import Ask, Ended, Piece, Said, Scored, TokenLogprob, Usage
from nalar.server.config import ServerConfig
from nalar.server.wire.chat import format_of
from nalar.server.wire.errors import bad_request
from nalar.server.wire.sampling import MAX_TOP_LOGPROBS, MOST_TOKENS, SamplingFields, finite
from nalar.server.wire.usage import usage_json

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Text(Protocol):
    vocab_size: int
    special_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...


class CompletionRequest(SamplingFields):
    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    max_tokens: int = Field(default=16, ge=0, le=MOST_TOKENS)
    """0: nothing new, for an echo alone."""
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: dict[str, Any] | None = None
    best_of: int | None = None
    suffix: str | None = None

    @property
    def given(self) -> list[str | list[int]]:
        """The prompts, one or many."""
        is_one = isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int))
        return cast("list[str | list[int]]", [self.prompt] if is_one else self.prompt)

    def asks(self, config: ServerConfig, seed: int, text: Text) -> list[Ask]:
        """One a prompt. ApiError (400) for what is not done here."""
        if self.suffix:
            raise bad_request("suffix: this model fills in no middles", "suffix")
        if self.best_of not in (None, 1, self.n):
            raise bad_request("best_of: wanted n, or nothing", "best_of")
        if self.max_tokens == 0 and not self.echo:
            raise bad_request("max_tokens: 0 asks for nothing without echo", "max_tokens")
        if len(self.given) * self.n > config.body.max_choices:
            raise bad_request(f"prompt: at most {config.body.max_choices} choices", "prompt")
        prompts = self._prompts(text)
        scores = self.logprobs if self.echo else None
        params = self.params(config, seed, logprobs=self.logprobs, prompt_logprobs=scores)
        return [
            Ask(
                messages=None,
                prompt_ids=ids,
                params=params,
                response_format=format_of(self.response_format),
                max_tokens=self.max_tokens,
                stop=self.stops,
                ignore_eos=self.ignore_eos,
                cache_salt=self.cache_salt,
                priority=self.priority,
            )
            for ids in prompts
        ]

    def _prompts(self, text: Text) -> list[tuple[int, ...]]:
        prompts = [tuple(text.encode(p) if isinstance(p, str) else p) for p in self.given]
        if not prompts or not all(prompts):
            raise bad_request("prompt: wanted at least one token in each", "prompt")
        if max(map(max, prompts)) >= text.vocab_size:
            raise bad_request(f"prompt: wanted ids below {text.vocab_size}", "prompt")
        return prompts


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


def _bytes(text: Text, token_id: int) -> bytes:
    """What a token adds to the text of a reply."""
    return b"" if token_id in text.special_ids else text.token_bytes(token_id)


class _Logprobs:
    """The four lists of one choice, as it grows. A special token stands there by its name, and has no text."""

    def __init__(self, text: Text) -> None:
        self._text, self._decoder = text, _decoder()
        self.tokens: list[str] = []
        self.values: list[float | None] = []
        self.tops: list[dict[str, float] | None] = []
        self.offsets: list[int] = []
        self._offset = 0

    def add(self, token_id: int, logprob: float | None, top: TopLogprobs) -> None:
        token = self._name(token_id)
        self.tokens.append(token)
        self.offsets.append(self._offset)
        self._offset += len(self._decoder.decode(_bytes(self._text, token_id)))
        if logprob is None:
            self.values.append(None)
            self.tops.append(None)
            return
        named = {self._name(i): finite(value) for i, value in reversed(top)}
        # Two ids may read the same: the one that stands here is who counts, and to the bit.
        named[token] = finite(logprob)
        self.values.append(finite(logprob))
        self.tops.append(named)

    def end_prompt(self) -> None:
        """No character goes on behind it."""
        self._offset += len(self._decoder.decode(b"", final=True))
        self._decoder = _decoder()

    def _name(self, token_id: int) -> str:
        return self._text.token_bytes(token_id).decode("utf-8", "replace")

    def json(self, since: int = 0) -> dict[str, Any]:
        return {
            "tokens": self.tokens[since:],
            "token_logprobs": self.values[since:],
            "top_logprobs": self.tops[since:],
            "text_offset": self.offsets[since:],
        }


@dataclass(frozen=True)
class CompletionWriter:
    """Writes chunks of one reply; the whole is a fold over them."""

    id: str
    created: int
    model: str
    text: Text
    asked: CompletionRequest
    prompts: Sequence[tuple[int, ...]]

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.asked.n

    def document(
        self, choices: list[dict[str, Any]], usage: Usage | None = None, *, is_chunk: bool
    ) -> dict[str, Any]:
        document: dict[str, Any] = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        options = self.asked.stream_options
        if not is_chunk or (options is not None and options.include_usage):
            document["usage"] = None if usage is None else usage_json(usage)
        return document

    def states(self) -> list["_State"]:
        """How far each choice is. New for each reply."""
        return [_State(self, index) for index in range(self.num_choices)]

    def fold(self, chunks: Sequence[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        folded = [
            {"index": i, "text": "", "logprobs": None, "finish_reason": None, "stop_reason": None}
            for i in range(self.num_choices)
        ]
        for chunk in chunks:
            whole = folded[chunk["index"]]
            whole["text"] += chunk["text"]
            if chunk["logprobs"] is not None:
                lists = whole["logprobs"] or {name: [] for name in chunk["logprobs"]}
                whole["logprobs"] = {n: lists[n] + chunk["logprobs"][n] for n in lists}
            if chunk["finish_reason"] is not None:
                whole |= {n: chunk[n] for n in ("finish_reason", "stop_reason")}
        return self.document(folded, usage, is_chunk=False)


class _State:
    """One choice on its way. With echo and logprobs nothing comes before the prompt's own logprobs are known."""

    def __init__(self, writer: CompletionWriter, index: int) -> None:
        self._asked, self._index = writer.asked, index
        self._prompt = writer.prompts[index // writer.asked.n]
        has_logprobs = writer.asked.logprobs is not None
        self._logprobs = _Logprobs(writer.text) if has_logprobs else None
        self._held: list[Piece] = []
        self._begun = not writer.asked.echo
        written = b"".join(_bytes(writer.text, token_id) for token_id in self._prompt)
        self._echoed = written.decode("utf-8", "replace")

    def choices(self, said: Said) -> Iterator[dict[str, Any]]:
        if isinstance(said, Scored):
            yield from self._begin(said)
        elif isinstance(said, Piece):
            if not self._begun and self._logprobs is not None:
                self._held.append(said)
                return
            yield from self._begin(None)
            yield from self._piece(said)
        elif isinstance(said, Ended):
            yield from self._begin(None)
            yield self._choice("") | {
                "finish_reason": "length" if self._asked.max_tokens == 0 else said.finish_reason,
                "stop_reason": said.stop_reason,
            }

    def _begin(self, scored: Scored | None) -> Iterator[dict[str, Any]]:
        if self._begun:
            return
        self._begun = True
        choice = self._choice(self._echoed)
        if self._logprobs is not None:
            scores = scored.logprobs if scored else (None,) * len(self._prompt)
            for token_id, score in zip(self._prompt, scores, strict=True):
                top = score.top if score else ()
                self._logprobs.add(token_id, score.logprob if score else None, top)
            self._logprobs.end_prompt()
            choice["logprobs"] = self._logprobs.json()
        yield choice
        held, self._held = self._held, []
        for piece in held:
            yield from self._piece(piece)

    def _piece(self, piece: Piece) -> Iterator[dict[str, Any]]:
        choice = self._choice(piece.text)
        if self._logprobs is not None:
            since = len(self._logprobs.tokens)
            for one in piece.logprobs:
                self._add(one)
            choice["logprobs"] = self._logprobs.json(since)
        if piece.text or choice["logprobs"]:
            yield choice

    def _add(self, one: TokenLogprob) -> None:
        assert self._logprobs is not None
        self._logprobs.add(one.token_id, one.logprob, one.top)

    def _choice(self, text: str) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": None, "finish_reason": None}
