"""The engine: token ids in, token ids and logprobs out.

It reads the model's own parameters and never copies them.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from nalar.config import ConfigError, UserError
from nalar.engine.config import EngineConfig
from nalar.engine.runner import Model, Runner
from nalar.engine.scheduler import Scheduler
from nalar.engine.sequence import Completion, Request


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

    A call keeps its state to itself: an exception, from the model, a callback or Ctrl-C, drops the
    call as a whole and leaves the engine as it was.
    """

    def __init__(self, model: Model, config: EngineConfig) -> None:
        longest = model.config.max_position_embeddings
        if config.max_model_len > longest:
            raise ConfigError(
                at="engine.max_model_len",
                got=str(config.max_model_len),
                want=f"at most the model's max_position_embeddings={longest}",
            )
        self.config = config
        self.policy_version = 0
        self._model = model
        self._num_calls_open = 0

    def generate(
        self, requests: Sequence[Request], on_step: OnStep | None = None
    ) -> list[list[Completion]]:
        """All samples of all requests, in order: result[i][j] is sample j of request i."""
        self._check(requests)
        if not requests:
            return []
        with self._open_call():
            return self._generate(requests, on_step)

    def stream(self, request: Request) -> Iterator[tuple[int, float]]:
        """The tokens of one sample as they come, each with its logprob: what `generate` gives,
        piece by piece.
        """
        self._check([request])
        if request.params.n != 1:
            raise UserError(
                at="request.params.n",
                got=str(request.params.n),
                want="1: a stream is of one sample",
            )
        return self._stream(request)

    def load(self, params: Mapping[str, Tensor], version: int) -> None:
        """Take over the parameters of a new policy; completions carry its version from now on.

        params: the model's own tensors, for which nothing is copied, or a full `state_dict`.
        """
        if self._num_calls_open:
            raise RuntimeError("engine.load: a generate or stream is still open; end it first")
        own = self._model.state_dict()
        foreign = {name: new for name, new in params.items() if not _is_same(own.get(name), new)}
        if foreign:
            _check_params(params, own)
            with torch.no_grad():
                for name, new in foreign.items():
                    own[name].copy_(new)
        self.policy_version = version

    def _generate(
        self, requests: Sequence[Request], on_step: OnStep | None
    ) -> list[list[Completion]]:
        scheduler = Scheduler(requests, self.config)
        runner = Runner(self._model, requests, self.config, self._device())
        results: list[dict[int, Completion]] = [{} for _ in requests]
        num_finished = num_done = num_tokens = 0
        while scheduler.has_work:
            num_tokens += _step(scheduler, runner, num_done)
            num_done = runner.num_done()
            if on_step:
                num_live = len(scheduler.running) - num_done
                on_step(
                    Progress(scheduler.num_waiting, num_live, num_finished + num_done, num_tokens)
                )
            if scheduler.should_release(num_done):
                num_finished += self._collect(scheduler, runner, results)
                num_done = 0
        return [
            [samples[j] for j in range(request.params.n)]
            for request, samples in zip(requests, results, strict=True)
        ]

    def _collect(
        self, scheduler: Scheduler, runner: Runner, results: list[dict[int, Completion]]
    ) -> int:
        """Turn the finished rows into completions, free them, and say how many they were."""
        rows = runner.done_rows()
        outcomes = runner.outcomes(rows)
        release = scheduler.release(rows)
        runner.release(rows, release)
        for sample, outcome in zip(release.samples, outcomes, strict=True):
            results[sample.request_id][sample.sample_id] = Completion(
                token_ids=outcome.token_ids,
                logprobs=outcome.logprobs,
                finish_reason=outcome.finish_reason,
                policy_version=self.policy_version,
            )
        return len(rows)

    def _stream(self, request: Request) -> Generator[tuple[int, float], None, None]:
        with self._open_call():
            scheduler = Scheduler([request], self.config)
            runner = Runner(self._model, [request], self.config, self._device())
            is_done = False
            while not is_done:
                _step(scheduler, runner, num_done=0)
                is_done = runner.num_done() > 0
                yield runner.last_token(0)

    @contextmanager
    def _open_call(self) -> Iterator[None]:
        self._num_calls_open += 1
        try:
            yield
        finally:
            self._num_calls_open -= 1

    def _device(self) -> torch.device:
        for tensor in self._model.state_dict().values():
            return torch.device(tensor.device)
        return torch.device("cpu")

    def _check(self, requests: Sequence[Request]) -> None:
        vocab_size, limit = self._model.config.vocab_size, self.config.max_model_len
        for i, request in enumerate(requests):
            num_prompt, max_tokens = len(request.prompt_ids), request.params.max_tokens
            if num_prompt + max_tokens > limit:
                raise UserError(
                    at=f"requests[{i}]",
                    got=f"{num_prompt} prompt tokens and max_tokens={max_tokens}",
                    want=f"at most max_model_len={limit} together",
                    hint="a shorter prompt, a smaller max_tokens, or a larger engine.max_model_len",
                )
            ids = (*request.prompt_ids, *request.params.stop_token_ids)
            if min(ids) < 0 or max(ids) >= vocab_size:
                raise UserError(
                    at=f"requests[{i}].prompt_ids or stop_token_ids",
                    got=f"ids from {min(ids)} to {max(ids)}",
                    want=f"ids from 0 to {vocab_size - 1}, the model's vocabulary",
                )


def _step(scheduler: Scheduler, runner: Runner, num_done: int) -> int:
    """Admit what waits where rows are free, else one token for every row.

    Returns the number of tokens drawn, those of the `num_done` finished rows not counted.
    """
    if scheduler.can_admit:
        admission = scheduler.admit()
        runner.admit(admission)
        return len(admission.samples)
    runner.decode()
    return len(scheduler.running) - num_done


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
