"""The engine: token ids in, token ids and logprobs out.

It reads the model's own parameters and never copies them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from nalar.config import ConfigError, UserError
from nalar.engine.blocks import BlockPool
from nalar.engine.config import EngineConfig
from nalar.engine.decode import Model
from nalar.engine.pending import Pending, Tokens
from nalar.engine.rules import Ruling, begin, follow, phase, ruling
from nalar.engine.runner import Runner, cache_dtype, cache_layers
from nalar.engine.sample import Sample
from nalar.engine.scheduler import Plan, Scheduler
from nalar.engine.sequence import Completion, Event, FinishReason, Request, Speculated, TopLogprobs
from nalar.machine import free_memory_bytes


@dataclass(frozen=True)
class Progress:
    """How far a call has come, after one step."""

    num_waiting: int
    num_running: int
    num_finished: int
    num_tokens: int
    """Tokens drawn so far."""


OnStep = Callable[[Progress], None]


class Engine:
    """Samples from one model. Not for use by several threads at once.

    `add`, `step` and `abort` are for servers; `generate` and `stream` are made of them, and can be
    under way side by side. An exception, from the model, a callback or Ctrl-C, drops the call it came
    through as a whole and leaves the engine as it was: other calls go on and give the same tokens.
    A rule of a request that raises ends this request alone.
    """

    def __init__(self, model: Model, config: EngineConfig) -> None:
        longest = model.config.max_position_embeddings
        if config.keeps_drafts and not model.config.num_nextn_predict_layers:
            raise ConfigError(
                at="engine.speculation.method",
                got="mtp, and a model without a block of multi-token prediction",
                want="a model that has one (num_nextn_predict_layers in its config.json), loaded with it",
                hint="engine.speculation.method='ngram', which needs no block",
            )
        if config.max_model_len > longest:
            raise ConfigError(
                at="engine.max_model_len",
                got=str(config.max_model_len),
                want=f"at most the model's max_position_embeddings={longest}",
            )
        self._device = _device(model)
        self.config = config = config.settled(is_gpu=self._device.type == "cuda")
        self.policy_version = 0
        self._model = model
        self._overlaps = self._device.type == "cuda"
        """Whether a step is launched before the tokens of the one before are known."""
        self._num_blocks = _num_blocks(model, config, self._device)
        pool = BlockPool(self._num_blocks, config.block_size, caching=config.enable_prefix_caching)
        self._scheduler = Scheduler(config, pool)
        self._speculated = Speculated(0, 0, 0)
        self._runner = Runner(model, config, self._num_blocks, self._device)
        self._requests: dict[int, list[Sample]] = {}
        """Samples of requests that are not answered in full."""
        self._pending: Pending | None = None
        """The step under way."""
        self._events: list[Event] = []
        """For the next who calls `step`."""
        self._inboxes: dict[int, list[Event]] = {}
        """By request, that of the `generate` or `stream` it belongs to: these bring events for each other."""
        self._ids, self._arrivals = count(), count()

    def add(self, request: Request) -> int:
        """Queue a request and return its id; UserError where it cannot be answered."""
        self._check(request, "request")
        return self._queue(request)

    def abort(self, request_id: int) -> None:
        """End a request at any moment: each sample is answered with what it has, by reason "abort".

        Unknown and answered requests are none of its business.
        """
        for sample in self._drop(request_id):
            self._deliver(sample, completion=sample.completion("abort", self.policy_version))

    @property
    def speculated(self) -> Speculated:
        """How guessing went so far, over all samples that are finished."""
        return self._speculated

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer together, at most: what `max_model_len` and the cache have room for."""
        capacity = (self._num_blocks - 1) * self.config.block_size
        return min(self.config.max_model_len, capacity)

    @property
    def cache_usage_frac(self) -> float:
        """Share of the cache's blocks that requests under way hold, 0 to 1; what is kept to be found again is free."""
        usable = self._num_blocks - 1
        return 1 - self._scheduler.pool.num_free / usable

    @property
    def has_work(self) -> bool:
        """Whether a step would do or say something."""
        return bool(self._events) or self._is_busy

    @property
    def _is_busy(self) -> bool:
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
            raise RuntimeError("engine.load: a request is still open; end or abort it first")
        self._pending = None  # of requests that were aborted
        own = self._model.state_dict()
        foreign = {name: new for name, new in params.items() if not _is_same(own.get(name), new)}
        if foreign:
            _check_params(params, own)
            with torch.no_grad():
                for name, new in foreign.items():
                    own[name].copy_(new)
        self._scheduler.flush()
        self._runner.check_weights()
        self.policy_version = version

    def sleep(self) -> None:
        """Free the memory of the cache, for a trainer on the same device. The next step takes it again.

        Requests under way wait, and all their tokens are computed anew; the next ones are the same.
        """
        self._pending = None
        self._scheduler.preempt_all()
        self._scheduler.flush()
        self._runner.drop_cache()

    def _queue(self, request: Request) -> int:
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

    def _advance(self) -> None:
        """One step. What an exception interrupts is done again: the same, since random numbers go by position."""
        try:
            self._step()
        except BaseException as error:
            self._pending = None
            self._scheduler.preempt_all()
            if isinstance(error, FloatingPointError):
                # NaN in the cache would reach whoever gets its blocks next: times a weight of 0 it is NaN.
                self._scheduler.flush()
                self._runner.drop_cache()
            raise

    def _step(self) -> None:
        runs_ahead = self._overlaps and not self._scheduler.needs_host
        if not runs_ahead:
            self._settle()
        plan = self._scheduler.schedule(may_preempt=self._pending is None)
        if plan is None:
            self._settle()
            return
        before, self._pending = self._pending, self._launch(plan)
        if before is not None:
            self._collect(before)
        if not runs_ahead:
            self._settle()

    def _launch(self, plan: Plan) -> Pending | None:
        if not (plan.prefills or plan.decodes):
            return None
        rulings: dict[int, Ruling] = {}
        failed: dict[int, Exception] = {}
        for i, sample in enumerate(plan.drawing):
            if sample.has_rules:
                try:
                    rulings[i] = ruling(sample, self._model.config.vocab_size)
                except Exception as error:  # a callback's own, of any kind
                    failed[sample.request_id] = error
        # Those that fail are computed with the others once more: nobody reads what they draw.
        launched = self._runner.launch(plan, rulings)
        for request_id, why in failed.items():
            self._fail(request_id, why)
        return launched

    def _settle(self) -> None:
        """Take in what is under way."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._collect(pending)

    def _collect(self, pending: Pending) -> None:
        """Take in the tokens of a step."""
        tokens = pending.tokens()
        for sample, entries in pending.prompts:
            known = sample.prompt_logprobs or [None]
            # A prompt that was preempted is computed anew: what is known of it stays.
            sample.prompt_logprobs = [*known, *entries] if len(known) < sample.num_prompt else known
        for drawn in tokens:
            sample = drawn.sample
            if sample.is_finished:
                continue
            try:
                reason, taken = self._accept(drawn)
            except Exception as error:  # a grammar's or stop matcher's own, of any kind
                self._fail(sample.request_id, error)
                continue
            completion = None if reason is None else self._completed(sample, reason)
            ids, logprobs = tuple(drawn.ids[:taken]), tuple(drawn.logprobs[:taken])
            tops = tuple(drawn.tops[:taken])
            self._deliver(sample, ids, logprobs, completion, tops=tops)

    def _accept(self, drawn: Tokens) -> tuple[FinishReason | None, int]:
        """Take in what a sample drew, up to its end, and say how many tokens that was.

        Guesses count as long as nothing has changed that they were drawn under.
        """
        sample, guesses = drawn.sample, self.config.speculation is not None
        before = phase(sample) if guesses and len(drawn.ids) > 1 else None
        if drawn.is_forced:
            sample.forced.append(len(sample.token_ids) - sample.num_prompt)
        reason, taken = None, 0
        for token in drawn.ids:
            if guesses and taken:
                if phase(sample) != before:
                    break
                self._scheduler.move_on(sample)
                sample.num_accepted += 1
            sample.token_ids.append(token)
            taken += 1
            if sample.has_rules:
                follow(sample, token)
            reason = _finish_reason(sample)
            if reason is not None:
                break
        sample.logprobs += drawn.logprobs[:taken]
        sample.processed_logprobs += drawn.processed_logprobs[:taken]
        sample.top_logprobs += drawn.tops[:taken]
        sample.num_new = taken
        self._scheduler.publish(sample)
        return reason, taken

    def _completed(self, sample: Sample, reason: FinishReason) -> Completion:
        samples = self._requests[sample.request_id]
        # Samples that did not compute the prompt themselves have it from the first.
        sample.prompt_logprobs = sample.prompt_logprobs or samples[0].prompt_logprobs
        self._scheduler.finish(sample)
        if all(s.is_finished for s in samples):
            del self._requests[sample.request_id]
        completion = sample.completion(reason, self.policy_version)
        if completion.speculated is not None:
            self._speculated += completion.speculated
        return completion

    def _fail(self, request_id: int, error: Exception) -> None:
        for sample in self._drop(request_id):
            self._deliver(sample, error=error)

    def _drop(self, request_id: int) -> list[Sample]:
        """What was left of a request: nothing of it is computed any more."""
        samples = [s for s in self._requests.pop(request_id, []) if not s.is_finished]
        for sample in samples:
            self._scheduler.finish(sample)
        return samples

    def _deliver(
        self,
        sample: Sample,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[float, ...] = (),
        completion: Completion | None = None,
        error: Exception | None = None,
        tops: tuple[TopLogprobs, ...] = (),
    ) -> None:
        """At once, so that no later exception loses it."""
        event = Event(
            sample.request_id,
            sample.sample_id,
            token_ids,
            logprobs,
            completion,
            error,
            tops,
            sample.num_cached or 0,
        )
        self._inboxes.get(sample.request_id, self._events).append(event)

    @contextmanager
    def _call(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], list[Event]]]:
        """Requests that are answered, or dropped, by the end of the block; and where their events come."""
        ids: list[int] = []
        inbox: list[Event] = []
        try:
            for request in requests:
                ids.append(self._queue(request))
                self._inboxes[ids[-1]] = inbox
            yield ids, inbox
        finally:
            for request_id in ids:
                self._drop(request_id)
                self._inboxes.pop(request_id, None)

    def _next_events(self, inbox: list[Event]) -> list[Event]:
        """Of a call, after as many steps as that takes; raises what one of its requests failed by."""
        while not inbox:
            assert self._is_busy, "a request was lost"
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
        capacity = (self._num_blocks - 1) * self.config.block_size
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
    c = model.config
    layers, width = cache_layers(model, config), c.cache_dim * cache_dtype(model).itemsize
    each = layers * config.block_size * width
    free = _free_bytes(device)
    if config.num_blocks is not None:
        if config.num_blocks * each > free:
            raise ConfigError(
                at="engine.num_blocks",
                got=f"{config.num_blocks:,} blocks of {each:,} bytes",
                want=f"at most {free // each:,}: {free:,} bytes are free on {device}",
            )
        return config.num_blocks
    wanted = config.max_num_seqs * -(-config.max_model_len // config.block_size) + 1
    affordable = int(free * config.memory_frac) // each
    if affordable < 2:
        raise ConfigError(
            at="engine.memory_frac",
            got=f"{config.memory_frac} of {free:,} free bytes on {device}",
            want=f"room for two blocks of {each:,} bytes at least",
            hint="free memory on the device, or a smaller model",
        )
    return min(wanted, affordable)


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return free_memory_bytes()
    # What PyTorch holds without using it is free for us too.
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + idle


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
