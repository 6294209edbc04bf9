"""The engine: token ids in, token ids and logprobs out.

It reads the model's own parameters and never copies them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from nalar.config import ConfigError, UserError
from nalar.engine.blocks import BlockPool
from nalar.engine.config import EngineConfig
from nalar.engine.rules import Ruling, begin, follow, phase, ruling
from nalar.engine.runner import Model, Pending, Runner, Token, cache_dtype, cache_layers
from nalar.engine.sample import Sample
from nalar.engine.scheduler import Plan, Scheduler
from nalar.engine.sequence import Completion, FinishReason, Request, Speculated
from nalar.machine import free_memory_bytes


@dataclass(frozen=True)
class Progress:
    """How far a call has come, after one step."""

    num_waiting: int
    num_running: int
    num_finished: int
    num_tokens: int
    """Tokens drawn so far."""


class Event(NamedTuple):
    """What a step brought for one sample of a request."""

    request_id: int
    sample_id: int
    token_ids: tuple[int, ...]
    """New ones."""
    logprobs: tuple[float, ...]
    completion: Completion | None = None
    """Once it is finished."""
    error: UserError | None = None
    """Why it ended without a completion: its own rule did not hold."""


OnStep = Callable[[Progress], None]


class Engine:
    """Samples from one model. Not for use by several threads at once.

    `add`, `step` and `abort` are for servers; `generate` and `stream` are made of them, and can be
    under way side by side. An exception, from the model, a callback or Ctrl-C, drops the call it came
    through as a whole and leaves the engine as it was.
    """

    def __init__(self, model: Model, config: EngineConfig) -> None:
        longest = model.config.max_position_embeddings
        if config.keeps_drafts and not model.config.num_nextn_predict_layers:
            raise ConfigError(
                at="engine.speculation.method",
                got="mtp, and a model without a block of multi-token prediction",
                want="a model that has one (num_nextn_predict_layers in its config.json), loaded with it",
                hint="--engine.speculation.method ngram",
            )
        if config.max_model_len > longest:
            raise ConfigError(
                at="engine.max_model_len",
                got=str(config.max_model_len),
                want=f"at most the model's max_position_embeddings={longest}",
            )
        self.config = config
        self.policy_version = 0
        self._model = model
        self._device = _device(model)
        self._overlaps = self._device.type == "cuda"
        """Whether a step is launched before the tokens of the one before are known."""
        self._pool = BlockPool(
            _num_blocks(model, config, self._device),
            config.block_size,
            caching=config.enable_prefix_caching,
        )
        self._scheduler = Scheduler(config, self._pool)
        self._speculated = Speculated(0, 0, 0)
        self._runner = Runner(model, config, self._pool.num_blocks, self._device)
        self._requests: dict[int, list[Sample]] = {}
        """Samples of requests that are not answered in full."""
        self._pending: Pending | None = None
        self._events: list[Event] = []
        """For the next who calls `step`."""
        self._inboxes: dict[int, list[Event]] = {}
        """By request, that of the `generate` or `stream` it belongs to: these bring events for each other."""
        self._ids, self._arrivals = count(), count()

    def add(self, request: Request) -> int:
        """Queue a request and return its id; UserError where it cannot be answered."""
        self._check(request, "request")
        request_id = next(self._ids)
        samples = [
            Sample(request_id, i, request, next(self._arrivals), list(request.prompt_ids))
            for i in range(request.params.n)
        ]
        for sample in samples:
            begin(sample)
            if request.make_grammar is not None:
                sample.grammar = request.make_grammar()
        samples[0].followers = samples[1:]
        self._requests[request_id] = samples
        self._scheduler.add(samples[0])
        return request_id

    def abort(self, request_id: int) -> None:
        """Drop what is left of a request, at any moment; unknown and answered ones are none of its business."""
        self._drop(request_id)
        self._inboxes.pop(request_id, None)

    @property
    def speculated(self) -> Speculated:
        """How guessing went so far, over all samples that are finished."""
        return self._speculated

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return self._pending is not None or self._scheduler.has_work

    def step(self) -> list[Event]:
        """Compute one step, and say what came of it (on a GPU: of the one before) for requests of `add`."""
        self._advance()
        events, self._events = self._events, []
        return events

    def generate(
        self, requests: Sequence[Request], on_step: OnStep | None = None
    ) -> list[list[Completion]]:
        """All samples of all requests, in order: result[i][j] is sample j of request i."""
        for i, request in enumerate(requests):
            self._check(request, f"requests[{i}]")
        with self._call(requests) as (ids, inbox):
            results: dict[int, dict[int, Completion]] = {request_id: {} for request_id in ids}
            num_left = num_samples = sum(request.params.n for request in requests)
            num_tokens = 0
            while num_left:
                for event in self._next_events(inbox):
                    num_tokens += len(event.token_ids)
                    if event.completion is not None:
                        results[event.request_id][event.sample_id] = event.completion
                        num_left -= 1
                if on_step:
                    num_running = self._num_running(ids)
                    num_waiting = num_left - num_running
                    num_finished = num_samples - num_left
                    on_step(Progress(num_waiting, num_running, num_finished, num_tokens))
        return [[samples[j] for j in sorted(samples)] for samples in results.values()]

    def stream(self, request: Request) -> Iterator[tuple[int, float]]:
        """The tokens of one sample as they come, each with its logprob: what `generate` gives,
        piece by piece.
        """
        self._check(request, "request")
        if request.params.n != 1:
            raise UserError(
                at="request.params.n",
                got=str(request.params.n),
                want="1: a stream is of one sample",
            )
        return self._stream(request)

    def load(self, params: Mapping[str, Tensor], version: int) -> None:
        """Take over the parameters of a new policy; completions carry its version from now on.

        params: the model's own tensors, for which nothing is copied, or a full `state_dict`. What is
        cached of prompts is forgotten.
        """
        if self._requests:
            raise RuntimeError("engine.load: a generate or stream is still open; end it first")
        self._settle()
        own = self._model.state_dict()
        foreign = {name: new for name, new in params.items() if not _is_same(own.get(name), new)}
        if foreign:
            _check_params(params, own)
            with torch.no_grad():
                for name, new in foreign.items():
                    own[name].copy_(new)
        self._scheduler.flush()
        self.policy_version = version

    def sleep(self) -> None:
        """Free the memory of the cache, for a trainer on the same device. The next step takes it again.

        Requests under way wait, and their prompts are computed anew.
        """
        self._settle()
        self._scheduler.preempt_all()
        self._scheduler.flush()
        self._runner.drop_cache()

    def _advance(self) -> None:
        try:
            self._deliver(self._step())
        except BaseException:
            # What was under way is lost, and drawn again: the same, since random numbers go by position.
            self._pending = None
            self._scheduler.preempt_all()
            raise

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            self._inboxes.get(event.request_id, self._events).append(event)

    def _step(self) -> list[Event]:
        before = self._pending
        runs_ahead = self._overlaps and not self._scheduler.needs_host
        events: list[Event] = []
        if before is not None and not runs_ahead:
            self._pending = None
            events += self._collect(before)
            before = None
        plan = self._scheduler.schedule(may_preempt=before is None)
        if plan is None:
            assert before is not None
            self._pending = None
            return self._collect(before)
        launched = None
        if plan.prefills or plan.decodes:
            rulings, failed = self._rulings(plan)
            launched = self._runner.launch(plan, rulings)
            for request_id, error in failed.items():
                events += self._fail(request_id, error)
        self._pending = None
        if before is not None:
            events += self._collect(before)
        if launched is not None and not runs_ahead:
            events += self._collect(launched)
        elif launched is not None:
            self._pending = launched
        return events

    def _rulings(self, plan: Plan) -> tuple[dict[int, Ruling], dict[int, UserError]]:
        """What the host has a say in, by place among the draws; and requests whose own rules do not hold."""
        rulings: dict[int, Ruling] = {}
        failed: dict[int, UserError] = {}
        for i, sample in enumerate(plan.drawing):
            if sample.has_rules:
                try:
                    rulings[i] = ruling(sample, self._model.config.vocab_size)
                except UserError as error:
                    failed[sample.request_id] = error
        return rulings, failed

    def _collect(self, pending: Pending) -> list[Event]:
        """Take in the tokens of a step."""
        for sample, entries in pending.prompts:
            known = sample.prompt_logprobs or [None]
            # Else it was preempted, and its prompt computed anew.
            sample.prompt_logprobs = [*known, *entries] if len(known) < sample.num_prompt else known
        by_sample = groupby(pending.tokens(), key=lambda token: token.sample)
        return [
            self._accept(sample, list(tokens))
            for sample, tokens in by_sample
            if not sample.is_finished
        ]

    def _accept(self, sample: Sample, tokens: Sequence[Token]) -> Event:
        """Take in what a step gave a sample: one token, and what was guessed right behind it."""
        taken: list[Token] = []
        completion, before = None, phase(sample)
        for token in tokens:
            if taken and (completion is not None or phase(sample) != before):
                break
            if taken:
                self._scheduler.move_on(sample)
                sample.num_accepted += 1
            completion = self._append(sample, token)
            taken.append(token)
        sample.num_new = len(taken)
        ids, logprobs = tuple(t.id for t in taken), tuple(t.logprob for t in taken)
        return Event(sample.request_id, sample.sample_id, ids, logprobs, completion)

    def _append(self, sample: Sample, token: Token) -> Completion | None:
        """One more token; what came of the sample, if it was the last."""
        if token.is_forced:
            sample.forced.append(len(sample.token_ids) - sample.num_prompt)
        sample.token_ids.append(token.id)
        sample.logprobs.append(token.logprob)
        sample.processed_logprobs.append(token.processed_logprob)
        if token.top is not None:
            sample.top_logprobs.append(token.top)
        if sample.has_rules:
            follow(sample, token.id)
        self._scheduler.publish(sample)
        reason = _finish_reason(sample)
        return None if reason is None else self._completed(sample, reason)

    def _completed(self, sample: Sample, reason: FinishReason) -> Completion:
        siblings = self._requests[sample.request_id]
        sample.prompt_logprobs = siblings[0].prompt_logprobs
        self._scheduler.finish(sample)
        if all(s.is_finished for s in siblings):
            del self._requests[sample.request_id]
        completion = sample.completion(reason, self.policy_version)
        if completion.speculated is not None:
            self._speculated += completion.speculated
        return completion

    def _fail(self, request_id: int, error: UserError) -> list[Event]:
        samples = [s for s in self._requests[request_id] if not s.is_finished]
        self._drop(request_id)
        return [Event(request_id, s.sample_id, (), (), error=error) for s in samples]

    def _drop(self, request_id: int) -> None:
        for sample in self._requests.pop(request_id, []):
            if not sample.is_finished:
                self._scheduler.finish(sample)

    def _settle(self) -> None:
        """Take in what is under way, for its owners to read later."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._deliver(self._collect(pending))

    @contextmanager
    def _call(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], list[Event]]]:
        """Requests that are answered, or dropped, by the end of the block, and where their events arrive."""
        ids: list[int] = []
        inbox: list[Event] = []
        try:
            for request in requests:
                ids.append(self.add(request))
                self._inboxes[ids[-1]] = inbox
            yield ids, inbox
        finally:
            for request_id in ids:
                self.abort(request_id)

    def _next_events(self, inbox: list[Event]) -> list[Event]:
        """What has arrived, after as many steps as it takes for something to; an error is raised."""
        while not inbox:
            self._advance()
        events = list(inbox)
        inbox.clear()
        for event in events:
            if event.error is not None:
                raise event.error
        return events

    def _stream(self, request: Request) -> Iterator[tuple[int, float]]:
        with self._call([request]) as (_, inbox):
            while True:
                for event in self._next_events(inbox):
                    yield from zip(event.token_ids, event.logprobs, strict=True)
                    if event.completion is not None:
                        return

    def _num_running(self, ids: Sequence[int]) -> int:
        samples = (s for request_id in ids for s in self._requests.get(request_id, []))
        return sum(sample.row is not None for sample in samples)

    def _check(self, request: Request, at: str) -> None:
        vocab_size, limit = self._model.config.vocab_size, self.config.max_model_len
        num_prompt, max_tokens = len(request.prompt_ids), request.params.max_tokens
        if num_prompt + max_tokens > limit:
            raise UserError(
                at=at,
                got=f"{num_prompt} prompt tokens and max_tokens={max_tokens}",
                want=f"at most max_model_len={limit} together",
                hint="a shorter prompt, a smaller max_tokens, or a larger engine.max_model_len",
            )
        capacity = (self._pool.num_blocks - 1) * self.config.block_size
        if num_prompt + max_tokens > capacity:
            raise UserError(
                at=at,
                got=f"{num_prompt} prompt tokens and max_tokens={max_tokens}",
                want=f"at most {capacity}, what the cache holds",
                hint="a larger engine.num_blocks or engine.memory_frac, or a smaller max_tokens",
            )
        params = request.params
        ids = [*request.prompt_ids, *params.stop_token_ids, *params.logit_bias]
        if params.thinking is not None:
            ids += (params.thinking.start_id, *params.thinking.closing)
        if min(ids) < 0 or max(ids) >= vocab_size:
            raise UserError(
                at=f"{at}.prompt_ids, stop_token_ids, logit_bias or thinking",
                got=f"ids from {min(ids)} to {max(ids)}",
                want=f"ids from 0 to {vocab_size - 1}, the model's vocabulary",
            )


def _finish_reason(sample: Sample) -> FinishReason | None:
    """Whether the newest token of a sample is its last."""
    params, matcher = sample.request.params, sample.request.stop_matcher
    if sample.token_ids[-1] in params.stop_token_ids:
        return "stop"
    num_output = len(sample.token_ids) - sample.num_prompt
    if matcher is not None and num_output > params.min_tokens and matcher(sample.output):
        return "stop"
    return "length" if num_output >= params.max_tokens else None


def _device(model: Model) -> torch.device:
    for tensor in model.state_dict().values():
        return torch.device(tensor.device)
    return torch.device("cpu")


def _num_blocks(model: Model, config: EngineConfig, device: torch.device) -> int:
    """Enough for all sequences at full length, or what memory allows."""
    if config.num_blocks is not None:
        return config.num_blocks
    c = model.config
    wanted = config.max_num_seqs * -(-config.max_model_len // config.block_size) + 1
    layers, width = cache_layers(model, config), c.cache_dim * cache_dtype(model).itemsize
    each = layers * config.block_size * width
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()
    affordable = int(free * config.memory_frac) // each
    if affordable < 2:
        raise ConfigError(
            at="engine.memory_frac",
            got=f"{config.memory_frac} of {free:,} free bytes on {device}",
            want=f"room for two blocks of {each:,} bytes at least",
            hint="free memory on the device, or a smaller model",
        )
    return min(wanted, affordable)


def _is_same(own: Tensor | None, new: Tensor) -> bool:
    return own is not None and own.data_ptr() == new.data_ptr() and own.shape == new.shape


def _check_params(params: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Find every disagreement before anything is copied."""
    strays = sorted(set(params) ^ set(own))
    if strays:
        name = strays[0]
        raise UserError(
            at=f"engine.load: {name}",
            got="a name the model does not have" if name in params else "no such tensor",
            want="exactly the names of the model's state_dict",
        )
    for name, new in params.items():
        if new.shape != own[name].shape:
            raise UserError(
                at=f"engine.load: {name}",
                got=f"shape {tuple(new.shape)}",
                want=f"shape {tuple(own[name].shape)}",
            )
