"""Samples of groups, each drawn to its end: through the engine, past replies of an environment, from step to step."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from nalar.engine.engine import Engine
from nalar.engine.sequence import Event, Request, SamplingParams
from nalar.engine.turns import Environment, MakeEnvironment
from nalar.rl.group import Group
from nalar.rl.response import Response


@dataclass(frozen=True)
class Drawing:
    """How every sample is drawn."""

    max_tokens: int
    """Cap on a response, replies of an environment included."""
    temperature: float
    stop_token_ids: tuple[int, ...]
    make_environment: MakeEnvironment | None = None
    """None: a response is over where it stops."""


@dataclass
class _Asked:
    """A request of the engine: neighbouring samples of one group."""

    group: Group
    samples: range
    num_open: int


class Sampler:
    """What one step has under way. The `with` block ends with an engine that has nothing left to do."""

    def __init__(self, engine: Engine, drawing: Drawing) -> None:
        self._engine, self._drawing = engine, drawing
        self._asked: dict[int, _Asked] = {}
        self._environments: dict[tuple[Group, int], Environment] = {}
        self.num_tokens = 0
        """So far, of samples that are under way too."""
        self.num_drawn = 0
        """Of those that ended or were left: what the model drew itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for request_id in self._asked:
            self._engine.abort(request_id)
        self._asked.clear()

    @property
    def is_done(self) -> bool:
        return not self._asked

    def begin(self, group: Group) -> None:
        """Queue what is left to draw of a group; of samples that have nothing yet the prompt is computed once."""
        for run in group.open_runs():
            self._ask(group, run)

    def step(self) -> list[tuple[Group, int]]:
        """One step of the engine; the samples that have become whole."""
        whole: list[tuple[Group, int]] = []
        for event in self._engine.step():
            asked = self._asked.get(event.request_id)
            if asked is None:  # of a call that was broken off
                continue
            if event.error is not None:
                raise event.error
            self.num_tokens += len(event.token_ids)
            if event.completion is not None:
                whole += self._taken(asked, event)
        return whole

    def halt(self) -> None:
        """Leave every sample where it is; its group keeps what it has."""
        for request_id in list(self._asked):
            self._engine.abort(request_id)
        if self._asked:
            self.step()
        assert not self._asked, "a request was lost"

    def _ask(self, group: Group, samples: range) -> None:
        so_far, drawing = group.responses[samples.start], self._drawing
        request = Request(
            group.prompt_ids + so_far.token_ids,
            SamplingParams(
                n=len(samples),
                max_tokens=drawing.max_tokens - len(so_far),
                temperature=drawing.temperature,
                stop_token_ids=drawing.stop_token_ids,
                seed=group.seed,
            ),
            first_stream=samples.start,
        )
        self._asked[self._engine.add(request)] = _Asked(group, samples, len(samples))

    def _taken(self, asked: _Asked, event: Event) -> Iterable[tuple[Group, int]]:
        """Take in what a sample drew, and the reply to it; the sample, if that was all."""
        assert event.completion is not None
        asked.num_open -= 1
        if not asked.num_open:
            del self._asked[event.request_id]
        group, i = asked.group, asked.samples[event.sample_id]
        part = Response.of(event.completion)
        self.num_drawn += part.num_drawn
        response = group.responses[i].then(part)
        if response.finish_reason == "stop":
            response = self._replied(group, i, response, event.completion.policy_version)
        group.responses[i] = response
        return [(group, i)] if response.is_whole else []

    def _replied(self, group: Group, i: int, response: Response, version: int) -> Response:
        """With the environment's reply, and asked to go on; as it is where the response is over."""
        make = self._drawing.make_environment
        if make is None:
            return response
        key = group, i
        if key not in self._environments:
            self._environments[key] = make(group.problem)
        given = self._environments[key].reply(response.token_ids)
        if given is None:
            return response
        if len(response) + len(given) >= self._drawing.max_tokens:
            return replace(response, finish_reason="length")
        longer = replace(response.then_given(given, version), finish_reason="abort")
        group.responses[i] = longer
        self._ask(group, range(i, i + 1))
        return longer
