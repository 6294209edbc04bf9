"""Samples that wait for somebody: where one stops, an environment may add ids, and it goes on. Imports no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from nalar.engine.sequence import Completion, Request, ThinkingParams
from nalar.tasks.problem import Problem


class Environment(Protocol):
    """One sample's other side: tools, another speaker."""

    def reply(self, token_ids: Sequence[int]) -> tuple[int, ...] | None:
        """Ids to append where a sample has stopped, such as a tool's output; None: the response is over.

        token_ids: all ids behind the prompt, earlier replies included. The reply must follow from them alone: a sample
        that waits for a later policy, or for a run to be resumed, goes on with an environment that is made anew.
        How many replies there are, and how long, is the environment's affair. What would leave no room for a token
        under the cap on a response is not appended: the response then ends as one that was cut.
        """
        ...


MakeEnvironment = Callable[[Problem], Environment]
"""Called for each sample."""


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
        params = {"n": 1, "max_tokens": left, "thinking": self._left_to_think()}
        return replace(
            self.request,
            prompt_ids=self.request.prompt_ids + self.done.token_ids,
            params=self.request.params.model_copy(update=params),
            first_stream=self.request.first_stream + self.sample_id,
        )

    def _left_to_think(self) -> ThinkingParams | None:
        """A thought that goes on behind a reply has what is left of its budget, not all of it again."""
        thinking, done = self.request.params.thinking, self.done
        if thinking is None:
            return None
        return thinking.after(thinking.count(self.request.prompt_ids, done.token_ids, done.forced))


def generate_turns(
    engine: Generates, requests: Sequence[Request], make_environment: Callable[[int], Environment]
) -> list[list[Completion]]:
    """All samples of all requests, each in an environment of its own, made for the request's place.

    Ids of the environment are among a completion's and named in `forced`; they count towards `max_tokens`. A sample for
    which they leave no room ends by "length" before them. Behind them it goes on with the random numbers that it would
    have had there anyway.
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
