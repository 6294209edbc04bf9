"""Samples that wait for somebody: where one stops, an environment may add ids, and it goes on. Imports no torch."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from nalar.engine.sequence import Completion, Request


class Environment(Protocol):
    """What a sample talks to: one for each sample."""

    def reply(self, token_ids: Sequence[int]) -> tuple[int, ...] | None:
        """Called when the sample stops, with all ids behind its prompt: ids to append, or None where it is over."""
        ...


class Generates(Protocol):
    """An engine, as far as it is needed here."""

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]: ...


@dataclass
class _Episode:
    """One sample on its way."""

    environment: Environment
    request: Request
    sample_id: int
    done: Completion
    turn: int = 0

    def next_request(self) -> Request | None:
        """None: it is over. `done` then holds all of it."""
        if self.done.finish_reason != "stop":
            return None
        ids = self.environment.reply(self.done.token_ids)
        if ids is None:
            return None
        left = self.request.params.max_tokens - len(self.done.token_ids) - len(ids)
        if left < 1:
            self.done = replace(self.done, finish_reason="length")
            return None
        self.done = _with_given(self.done, ids)
        self.turn += 1
        params = self.request.params.model_copy(
            update={"n": 1, "max_tokens": left, "seed": self._seed()}
        )
        return replace(
            self.request,
            prompt_ids=self.request.prompt_ids + self.done.token_ids,
            params=params,
        )

    def _seed(self) -> int:
        """Of this turn of this sample alone."""
        name = f"{self.request.params.seed} {self.sample_id} {self.turn}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def generate_turns(
    engine: Generates, requests: Sequence[Request], make_environment: Callable[[int], Environment]
) -> list[list[Completion]]:
    """All samples of all requests, each in an environment of its own, made for the request's place.

    Ids of the environment are among a completion's and named in `forced`; they count towards `max_tokens`. A sample for
    which they leave no room ends by "length" before them.
    """
    groups = [
        [
            _Episode(make_environment(i), request, j, completion)
            for j, completion in enumerate(completions)
        ]
        for i, (request, completions) in enumerate(
            zip(requests, engine.generate(requests), strict=True)
        )
    ]
    waiting = [episode for group in groups for episode in group]
    while asked := [(e, request) for e in waiting if (request := e.next_request())]:
        more = engine.generate([request for _, request in asked])
        waiting = [episode for episode, _ in asked]
        for episode, (completion,) in zip(waiting, more, strict=True):
            episode.done = _then(episode.done, completion)
    return [[episode.done for episode in group] for group in groups]


def _with_given(done: Completion, ids: Sequence[int]) -> Completion:
    at = len(done.token_ids)
    return replace(
        done,
        token_ids=(*done.token_ids, *ids),
        logprobs=(*done.logprobs, *(0.0,) * len(ids)),
        forced=(*done.forced, *range(at, at + len(ids))),
    )


def _then(done: Completion, more: Completion) -> Completion:
    """One completion of two. What was reported beside single tokens is left out: it has no place at given ones."""
    at = len(done.token_ids)
    return Completion(
        token_ids=done.token_ids + more.token_ids,
        logprobs=done.logprobs + more.logprobs,
        finish_reason=more.finish_reason,
        policy_version=more.policy_version,
        forced=done.forced + tuple(at + i for i in more.forced),
        prompt_logprobs=done.prompt_logprobs,
        num_cached_tokens=done.num_cached_tokens,
    )
