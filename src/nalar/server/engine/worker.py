"""The process that holds the model: reads requests from a socket, steps the engine, writes what it drew.

Started by `link.py`, as `python -m nalar.server.engine.worker FD`; the first line it reads is a WorkerConfig. While
there is no work it sleeps on the socket. It ends when the socket does, or when the process that started it is gone.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from nalar.config import UserError
from nalar.data.grammar import Grammars, MakeGrammar
from nalar.data.stopping import StopStrings
from nalar.engine.engine import Engine
from nalar.engine.sequence import Completion, Request, StopMatcher
from nalar.engine.sequence import Event as EngineEvent
from nalar.model.folder import ModelFolder
from nalar.model.weights import load_model
from nalar.server.ask import GrammarSpec
from nalar.server.config import WorkerConfig
from nalar.server.dialects.dialect import Dialect
from nalar.server.engine.channel import Channel
from nalar.server.engine.messages import (
    EngineRequest,
    Event,
    error_json,
    event_json,
    read_request,
)

MAX_FAILED_STEPS = 3
"""In a row; then the process ends, and a new one may do better."""
_PARENT_S = 0.5


@dataclass(slots=True)
class _Open:
    """A request that is not answered in full."""

    engine_id: int
    stop_ids: tuple[int, ...]
    num_left: int
    """Choices that are not finished."""
    is_silent: bool = True
    """Nothing was drawn yet."""


class Worker:
    """One engine and those who ask it, by numbers that the asking side chose."""

    def __init__(self, channel: Channel, config: WorkerConfig) -> None:
        """UserError where the model cannot be loaded."""
        self._channel = channel
        speculation = config.engine.speculation
        with_mtp = speculation is not None and speculation.method == "mtp"
        dtype = getattr(torch, config.dtype)
        model = load_model(config.folder, device=config.device, dtype=dtype, with_mtp=with_mtp)
        model.eval().requires_grad_(False)
        folder = ModelFolder.read(config.folder, config.chat_template)
        self._tokenizer = Dialect.of(folder).tokenizer
        if self._tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                at=str(config.folder),
                got=f"a tokenizer of {self._tokenizer.vocab_size} ids, a model of {model.config.vocab_size}",
                want="a model that knows every id of its tokenizer",
            )
        self._engine = Engine(model, config.engine)
        self._grammars: Grammars | None = None
        self._grammar = lru_cache(maxsize=64)(self._compiled)
        self.facts = {
            "max_model_len": self._engine.longest,
            "weight_version": config.weight_version,
        }
        self._open: dict[int, _Open] = {}
        """By number."""
        self._numbers: dict[int, int] = {}
        """Of the same, by the engine's id."""
        self._events: dict[tuple[int, int], Event] = {}
        """Not sent yet, by number and choice; what comes while the other side is slow is joined."""
        self._replies: list[dict[str, Any]] = []
        self._failed_steps = 0

    def run(self) -> None:
        """Until told to stop; EOFError where the other side went away."""
        while True:
            for line in self._channel.lines(wait=not self._engine.has_work):
                if line["op"] == "stop":
                    return
                self._hear(line)
            if self._engine.has_work:
                self._step()
            self._say()

    def _hear(self, line: dict[str, Any]) -> None:
        if line["op"] == "ask":
            self._ask(line["id"], line)
        elif line["op"] == "abort":
            self._abort(line["id"])
        elif line["op"] == "stats":
            waiting = sum(request.is_silent for request in self._open.values())
            stats = {"running": len(self._open) - waiting, "waiting": waiting}
            self._replies.append({"stats": stats, "id": line["id"]})

    def _ask(self, number: int, line: dict[str, Any]) -> None:
        try:
            asked = read_request(line)
            engine_id = self._engine.add(self._request(asked))
        except Exception as error:
            # The request's fault, or a bug of ours: either way it ends this one alone.
            if not isinstance(error, UserError):
                traceback.print_exc()
            self._replies.append({"error": error_json(error), "id": number})
            return
        self._numbers[engine_id] = number
        self._open[number] = _Open(engine_id, asked.params.stop_token_ids, asked.params.n)

    def _request(self, asked: EngineRequest) -> Request:
        return Request(
            asked.prompt_ids,
            asked.params,
            stop_matcher=self._stops(asked) if asked.stop else None,
            make_grammar=None if asked.grammar is None else self._grammar(asked.grammar),
            priority=asked.priority,
            cache_salt=asked.cache_salt,
        )

    def _compiled(self, spec: GrammarSpec) -> MakeGrammar:
        if self._grammars is None:
            self._grammars = Grammars(self._tokenizer)
        if spec.kind == "json_schema":
            return self._grammars.json_schema(json.loads(spec.text))
        compile_text: Callable[[str], MakeGrammar] = (
            self._grammars.regex if spec.kind == "regex" else self._grammars.lark
        )
        return compile_text(spec.text)

    def _stops(self, asked: EngineRequest) -> StopMatcher:
        """Stop strings end answers, not thoughts. Where a match stands is looked up when there is one."""
        matches, thinking = StopStrings(self._tokenizer, asked.stop), asked.params.thinking

        def in_answer(ids: Sequence[int]) -> bool:
            if not matches(ids):
                return False
            if thinking is None:
                return True
            marks = (thinking.start_id, thinking.end_id)
            for token_ids in (ids, asked.prompt_ids):
                for token_id in reversed(token_ids):
                    if token_id in marks:
                        return token_id == thinking.end_id
            return True

        return in_answer

    def _abort(self, number: int) -> None:
        if number in self._open:
            self._engine.abort(self._forget(number))

    def _forget(self, number: int) -> int:
        """Nothing more is said about a request; returns the engine's id of it."""
        engine_id = self._open.pop(number).engine_id
        del self._numbers[engine_id]
        for key in [key for key in self._events if key[0] == number]:
            del self._events[key]
        return engine_id

    def _step(self) -> None:
        try:
            with torch.inference_mode():
                events = self._engine.step()
        except Exception as error:
            traceback.print_exc()
            self._failed_steps += 1
            if self._failed_steps == MAX_FAILED_STEPS:
                raise
            for number in list(self._open):
                self._abort(number)
                self._replies.append({"error": error_json(error), "id": number})
            return
        self._failed_steps = 0
        for event in events:
            self._take(event)

    def _take(self, event: EngineEvent) -> None:
        number = self._numbers.get(event.request_id)
        if number is None:  # aborted
            return
        if event.error is not None:
            self._forget(number)
            self._replies.append({"error": error_json(event.error), "id": number})
            return
        request = self._open[number]
        request.is_silent = False
        new = Event(
            event.sample_id,
            event.token_ids,
            event.logprobs,
            event.tops,
            num_cached=event.num_cached,
        )
        if event.completion is not None:
            new = _ended(new, event.completion, request.stop_ids)
        key = (number, event.sample_id)
        held = self._events.get(key)
        self._events[key] = new if held is None else held.then(new)
        if event.completion is not None:
            request.num_left -= 1
            if not request.num_left:
                del self._open[number], self._numbers[event.request_id]

    def _say(self) -> None:
        if not self._channel.flush() or not (self._events or self._replies):
            return
        events = [event_json(number, event) for (number, _), event in self._events.items()]
        self._channel.send({"events": events, "replies": self._replies})
        self._events, self._replies = {}, []
        self._channel.flush()


def _ended(new: Event, done: Completion, stop_ids: tuple[int, ...]) -> Event:
    """The last event of a choice."""
    is_stop = done.finish_reason == "stop"
    return replace(
        new,
        finish_reason="stop" if is_stop else "length",
        stop_id=done.token_ids[-1] if is_stop and done.token_ids[-1] in stop_ids else None,
        num_cached=done.num_cached_tokens,
        prompt_logprobs=done.prompt_logprobs,
    )


def _die_with_parent() -> None:
    """Also while a model loads or a step takes long, when nobody looks at the socket."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    # The server is told to stop and tells us: a Ctrl-C or a SIGTERM of the whole group is not for this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        (first,) = _first_line(channel)
        config = WorkerConfig.model_validate(first)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        try:
            worker = Worker(channel, config)
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
            channel.finish({"failed": error_json(error)})
            return 2 if isinstance(error, UserError) else 1
        channel.send({"ready": worker.facts})
        worker.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0
    return 0


def _first_line(channel: Channel) -> list[Any]:
    while not (lines := channel.lines(wait=True)):
        pass
    return lines


if __name__ == "__main__":
    sys.exit(main())
