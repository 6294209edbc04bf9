"""The process that holds the model: reads requests from a socket, steps the engine, writes what it drew.

Started by `link.py`, as `python -m nalar.server.engine.worker FD`; the first line it reads is a WorkerConfig. While
there is no work it sleeps on the socket. It ends when the socket does, or when the process that started it is gone.
"""

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nalar.config import UserError
from nalar.data.stopping import StopStrings
from nalar.engine.engine import Engine
from nalar.engine.sequence import Completion, Request, StopMatcher
from nalar.engine.sequence import Event as EngineEvent
from nalar.model.folder import ModelFolder
from nalar.model.weights import load_model
from nalar.server.config import WorkerConfig
from nalar.server.dialects.dialect import Dialect
from nalar.server.engine.channel import Channel
from nalar.server.engine.grammar_link import Followed, GrammarLink
from nalar.server.engine.messages import (
    EngineRequest,
    EngineStats,
    Event,
    error_json,
    event_json,
    read_request,
)

MAX_FAILED_STEPS = 3
"""In a row; then the process ends, and a new one may do better."""
_PARENT_S = 0.5
_SILENT_S = 0.001
"""After a step that gave nothing, while all may be waiting for grammars."""


@dataclass(slots=True)
class _Open:
    """A request that is not answered in full."""

    engine_id: int
    stop_ids: tuple[int, ...]
    num_left: int
    """Choices that are not finished."""
    with_logprobs: bool
    """Whether they are said."""
    grammar: Followed | None
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
        self._grammars = GrammarLink(config)
        self._compiling: dict[int, EngineRequest] = {}
        """By number: the engine knows nothing of them yet."""
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
        self._is_silent = False

    def run(self) -> None:
        """Until told to stop; EOFError where the other side went away."""
        while True:
            has_work, pending = self._engine.has_work, self._grammars.pending
            wait_s = _SILENT_S if has_work else self._grammars.wait_s
            wait = not has_work or (self._is_silent and bool(pending))
            lines = self._channel.lines(wait=wait, others=pending, wait_s=wait_s)
            for line in lines:
                if line["op"] == "stop":
                    return
                self._hear(line)
            for number, result in self._grammars.settled():
                self._begin(number, self._compiling.pop(number), result)
            if self._engine.has_work:
                self._step()
            self._say()

    def _hear(self, line: dict[str, Any]) -> None:
        if line["op"] == "ask":
            self._ask(line["id"], line)
        elif line["op"] == "abort":
            self._abort(line["id"])
        elif line["op"] == "stats":
            silent = sum(request.is_silent for request in self._open.values())
            waiting = silent + len(self._compiling)
            running = len(self._open) - silent
            stats = EngineStats(running, waiting, self._engine.cache_usage_frac)
            self._replies.append({"stats": asdict(stats), "id": line["id"]})

    def _ask(self, number: int, line: dict[str, Any]) -> None:
        try:
            asked = read_request(line)
        except Exception as error:
            self._refuse(number, error)
            return
        if asked.grammar is None:
            self._begin(number, asked, None)
        else:
            self._compiling[number] = asked
            self._grammars.ask(number, asked.grammar)

    def _begin(
        self, number: int, asked: EngineRequest, grammar: Followed | Exception | None
    ) -> None:
        if isinstance(grammar, Exception):
            self._refuse(number, grammar)
            return
        try:
            engine_id = self._engine.add(self._request(asked, grammar))
        except Exception as error:
            if grammar is not None:
                grammar.close()
            self._refuse(number, error)
            return
        params = asked.params
        self._numbers[engine_id] = number
        with_logprobs = params.logprobs is not None
        self._open[number] = _Open(
            engine_id, params.stop_token_ids, params.n, with_logprobs, grammar
        )

    def _refuse(self, number: int, error: Exception) -> None:
        """The request's fault, or a bug of ours: either way it ends this one alone."""
        if not isinstance(error, UserError):
            traceback.print_exception(error)
        self._replies.append({"error": error_json(error), "id": number})

    def _request(self, asked: EngineRequest, grammar: Followed | None) -> Request:
        return Request(
            asked.prompt_ids,
            asked.params,
            stop_matcher=self._stops(asked) if asked.stop else None,
            make_grammar=grammar,
            may_draw=None if grammar is None else grammar.may_draw,
            priority=asked.priority,
            cache_salt=asked.cache_salt,
            owner=asked.owner,
        )

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
        elif self._compiling.pop(number, None) is not None:
            self._grammars.drop(number)

    def _forget(self, number: int) -> int:
        """Nothing more is said about a request; returns the engine's id of it."""
        for key in [key for key in self._events if key[0] == number]:
            del self._events[key]
        return self._close(number)

    def _close(self, number: int) -> int:
        """Nothing more comes of a request; returns the engine's id of it."""
        request = self._open.pop(number)
        del self._numbers[request.engine_id]
        if request.grammar is not None:
            request.grammar.close()
        return request.engine_id

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
        self._failed_steps, self._is_silent = 0, not events
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
            event.logprobs if request.with_logprobs else (),
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
                self._close(number)

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
    return new._replace(
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
