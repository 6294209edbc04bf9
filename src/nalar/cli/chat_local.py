"""A model on this machine, as `nalar chat` speaks with it: messages in, pieces out."""

import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nalar.agent.speech import Asked, Call, Message, Piece, Turn, Usage
from nalar.config import UserError
from nalar.pipeline.config import RunConfig

if TYPE_CHECKING:
    from nalar.data.dialogue import Delta, Parsed, Parser
    from nalar.engine.sequence import Completion, Request, SamplingParams
    from nalar.pipeline.sampler import Sampler


@dataclass(frozen=True)
class _Known:
    """A conversation before a turn of calls, and all ids to its end: written anew, words may fall into other ids."""

    messages: list[Message]
    ids: tuple[int, ...]


class LocalSpeaker:
    """One conversation at a time."""

    def __init__(self, sampler: "Sampler") -> None:
        self._engine, self._tokenizer = sampler.engine, sampler.tokenizer
        self._known: _Known | None = None
        self._call_ids = itertools.count()

    @classmethod
    def load(
        cls, folder: Path, config: RunConfig | None, *, with_tools: bool = False
    ) -> "LocalSpeaker":
        """UserError where tools are asked for, and the model knows none."""
        from nalar.data.dialogue import tool_ids
        from nalar.pipeline.sampler import load_sampler  # imports torch

        sampler = load_sampler(folder, config)
        if with_tools:
            tool_ids(sampler.tokenizer)
        return cls(sampler)

    def say(self, messages: Sequence[Message], asked: Asked) -> Iterator[Piece | Turn]:
        """One turn. Tools are those that the model was trained with: its prompts have no list of them."""
        from nalar.data.dialogue import Parser, opens_thought
        from nalar.engine.sequence import Request

        prompt_ids = self._prompt_ids(messages, asked)
        params = self._params(prompt_ids, asked)
        reader = _Reader(
            Parser(self._tokenizer, thinking=opens_thought(self._tokenizer, prompt_ids))
        )
        done = yield from self._draw(Request(prompt_ids, params), reader)
        yield self._turn(messages, prompt_ids, done, reader)

    def _draw(self, request: "Request", reader: "_Reader") -> Generator[Piece, None, "Completion"]:
        """Pieces; returns the sample. One that is stopped is taken out of the engine."""
        request_id, done = self._engine.add(request), None
        try:
            while done is None:
                for event in self._engine.step():
                    if event.request_id != request_id:
                        continue  # the end of one that was stopped
                    if event.error is not None:
                        raise event.error
                    for token_id in event.token_ids:
                        yield from reader.feed(token_id)
                    done = event.completion or done
        finally:
            if done is None:
                self._engine.abort(request_id)
        yield from reader.flush()
        return done

    def _turn(
        self,
        messages: Sequence[Message],
        prompt_ids: tuple[int, ...],
        done: "Completion",
        reader: "_Reader",
    ) -> Turn:
        from nalar.evals.protocol import thinking_params

        said, ids = reader.result(), done.token_ids
        calls = tuple(
            Call(f"call_{next(self._call_ids)}", one.name, one.arguments) for one in said.calls
        )
        self._known = _Known(list(messages), (*prompt_ids, *ids)) if calls else None
        thought = thinking_params(self._tokenizer)
        return Turn(
            said.thought,
            said.answer,
            calls,
            "tool_calls" if calls and done.finish_reason == "stop" else done.finish_reason,
            Usage(
                prompt_tokens=len(prompt_ids),
                cached_tokens=done.num_cached_tokens,
                completion_tokens=len(ids),
                reasoning_tokens=thought.count(prompt_ids, ids, done.forced),
            ),
        )

    def _prompt_ids(self, messages: Sequence[Message], asked: Asked) -> tuple[int, ...]:
        """Behind calls of this very conversation its ids go on, and the outputs stand behind them."""
        from nalar.data.dialogue import encode_output, encode_prompt

        known = self._known
        if known and [*messages[: len(known.messages)]] == known.messages:
            said, *outputs = messages[len(known.messages) :]
            if said["role"] == "assistant" and all(one["role"] == "tool" for one in outputs):
                given = [encode_output(self._tokenizer, one["content"]) for one in outputs]
                return (*known.ids, *itertools.chain.from_iterable(given))
        thinking = asked.thinking is not False
        return tuple(encode_prompt(self._tokenizer, messages, thinking=thinking))

    def _params(self, prompt_ids: Sequence[int], asked: Asked) -> "SamplingParams":
        from nalar.engine.sequence import SamplingParams
        from nalar.evals.protocol import thinking_params

        limit = self._engine.config.max_model_len
        left = limit - len(prompt_ids)
        if left < 1:
            raise UserError(
                at="the model's context",
                got=f"a conversation of {len(prompt_ids)} tokens",
                want=f"fewer than {limit}, so that there is room for a reply",
                hint="/new begins another; --model.max-position-embeddings sets it where a model is trained",
            )
        thought = thinking_params(self._tokenizer, asked.thinking_budget)
        return SamplingParams(
            max_tokens=min(left, asked.max_tokens or left),
            temperature=1.0 if asked.temperature is None else asked.temperature,
            stop_token_ids=self._tokenizer.stop_ids,
            seed=asked.seed or 0,
            thinking=None if asked.thinking_budget is None else thought,
        )


class _Reader:
    """Ids to pieces, with a call's name apart from its arguments."""

    def __init__(self, parser: "Parser") -> None:
        self._parser, self._has_name = parser, False

    def feed(self, token_id: int) -> Iterator[Piece]:
        return self._pieces(self._parser.feed(token_id))

    def flush(self) -> Iterator[Piece]:
        return self._pieces(self._parser.flush())

    def result(self) -> "Parsed":
        return self._parser.result()

    def _pieces(self, delta: "Delta") -> Iterator[Piece]:
        if delta.thought:
            yield Piece("thought", delta.thought)
        if delta.answer:
            yield Piece("answer", delta.answer)
        name, space, arguments = "", "", delta.call
        if not self._has_name:
            name, space, arguments = delta.call.partition(" ")
            self._has_name = bool(space)
        if name:
            yield Piece("call", name)
        if arguments:
            yield Piece("arguments", arguments)
        if delta.finished:
            self._has_name = False
