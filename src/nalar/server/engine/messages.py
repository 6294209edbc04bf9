"""What the server and the process of its engine say to each other: JSON, one object a line. Imports no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, NamedTuple

from nalar.config import UserError
from nalar.engine.sequence import PromptLogprob, SamplingParams, TopLogprobs
from nalar.server.ask import GrammarSpec


class EngineError(Exception):
    """The engine's fault, not the request's: it died, or its model raised."""


@dataclass(frozen=True)
class EngineFacts:
    """What is known of a model once it is loaded."""

    max_model_len: int
    """Tokens of prompt and answer together; less than the config has it where the cache is smaller."""
    weight_version: str


@dataclass(frozen=True)
class EngineStats:
    """What an engine does at the moment."""

    running: int
    """Requests that something was drawn for."""
    waiting: int
    """Those that nothing was drawn for yet."""
    cache_usage_frac: float
    """Share of the cache that they hold, 0 to 1."""


IDLE = EngineStats(0, 0, 0.0)


@dataclass(frozen=True)
class EngineRequest:
    """A prompt for the engine's process."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    stop: tuple[str, ...] = ()
    """Strings that end the answer, never a thought."""
    grammar: GrammarSpec | None = None
    cache_salt: str = ""
    priority: int = 0
    owner: str = ""
    """Rows of the engine are shared among these."""


class Event(NamedTuple):
    """What came of one choice since its last event. A tuple, since one is made for every event of every stream."""

    choice: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each of them, by the model's own distribution, where the request asked for any."""
    tops: tuple[TopLogprobs, ...] = ()
    """Beside each, where the request asked for any."""
    finish_reason: Literal["stop", "length"] | None = None
    stop_id: int | None = None
    """The token that ended it, where that was one of the stop tokens. None: a stop string did."""
    num_cached: int = 0
    """Tokens of the prompt found in the cache."""
    prompt_logprobs: tuple[PromptLogprob | None, ...] = ()
    """At the end, where they were asked for."""

    def then(self, later: "Event") -> "Event":
        """Both as one."""
        return Event(
            self.choice,
            self.token_ids + later.token_ids,
            self.logprobs + later.logprobs,
            self.tops + later.tops,
            later.finish_reason,
            later.stop_id,
            later.num_cached,
            later.prompt_logprobs,
        )


def encode_line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def request_json(number: int, request: EngineRequest) -> dict[str, Any]:
    grammar = request.grammar
    return {
        "op": "ask",
        "id": number,
        "prompt_ids": request.prompt_ids,
        "params": request.params.model_dump(mode="json"),
        "stop": request.stop,
        "grammar": None if grammar is None else astuple(grammar),
        "cache_salt": request.cache_salt,
        "priority": request.priority,
        "owner": request.owner,
    }


def read_request(line: Mapping[str, Any]) -> EngineRequest:
    """What `request_json` gave."""
    grammar = line["grammar"]
    return EngineRequest(
        prompt_ids=tuple(line["prompt_ids"]),
        params=SamplingParams.model_validate(line["params"]),
        stop=tuple(line["stop"]),
        grammar=None if grammar is None else GrammarSpec(*grammar),
        cache_salt=line["cache_salt"],
        priority=line["priority"],
        owner=line["owner"],
    )


def event_json(number: int, event: Event) -> list[Any]:
    """Without what is empty at its end, as most are."""
    prompt = [p and [p.logprob, p.rank, p.top] for p in event.prompt_logprobs]
    fields: list[Any] = [number, event.choice, event.token_ids, event.num_cached]
    if event.logprobs or event.finish_reason is not None:
        fields += [event.logprobs, event.tops]
    if event.finish_reason is not None:
        fields += [event.finish_reason, event.stop_id, prompt]
    return fields


def read_event(fields: Sequence[Any]) -> tuple[int, Event]:
    """What `event_json` gave: the request's number, and the event."""
    number, choice, ids, cached, *more = fields
    if not more:
        return number, Event(choice, tuple(ids), (), num_cached=cached)
    logprobs, tops, *end = more
    reason, stop, prompt = end or (None, None, ())
    event = Event(
        choice,
        tuple(ids),
        tuple(logprobs),
        tuple(map(_top, tops)),
        reason,
        stop,
        cached,
        tuple(p and PromptLogprob(p[0], p[1], _top(p[2])) for p in prompt),
    )
    return number, event


def _top(pairs: Sequence[Sequence[Any]]) -> TopLogprobs:
    return tuple((token_id, logprob) for token_id, logprob in pairs)


def error_json(error: Exception) -> dict[str, Any]:
    if isinstance(error, UserError):
        return {"at": error.at, "got": error.got, "want": error.want, "hint": error.hint}
    return {"crash": f"{type(error).__name__}: {error}"}


def read_error(document: Mapping[str, Any]) -> UserError | EngineError:
    """What `error_json` gave."""
    if "crash" in document:
        return EngineError(str(document["crash"]))
    return UserError(**document)
