"""The running sequences as tensors, one row each: a step costs the same Python for one as for 256.

R rows · S stop tokens · N generated tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nalar.engine.sampler import Shaping, stream_key, uniforms
from nalar.engine.scheduler import SampleId
from nalar.engine.sequence import FinishReason, Request

_NO_TOKEN = -1


@dataclass(frozen=True)
class Outcome:
    """The generated part of one finished sample."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


@dataclass(frozen=True)
class Rows:
    """State of a range of rows. Updates are in place, so ranges of one batch share their memory.

    A finished row goes through further steps until it is released; its counters stand still and
    what it draws is written behind its own end.
    """

    ids_R: Tensor
    """The last token, drawn but not yet in the cache."""
    positions_R: Tensor
    """Where that token stands, the prompt included."""
    num_generated_R: Tensor
    max_tokens_R: Tensor
    is_stopped_R: Tensor
    is_done_R: Tensor
    keys_R: Tensor
    """Of the row's stream of random numbers."""
    temperature_R: Tensor
    top_k_R: Tensor
    top_p_R: Tensor
    stop_ids_RS: Tensor
    tokens_RN: Tensor
    logprobs_RN: Tensor

    @classmethod
    def for_requests(
        cls, requests: Sequence[Request], num_rows: int, device: torch.device
    ) -> "Rows":
        """Memory for rows of any of these requests."""
        num_stops = max(len(request.params.stop_token_ids) for request in requests)
        # One more than any row may keep: where finished rows write what they still draw.
        num_tokens = 1 + max(request.params.max_tokens for request in requests)

        def new(dtype: torch.dtype, *width: int) -> Tensor:
            return torch.zeros((num_rows, *width), dtype=dtype, device=device)

        return cls(
            ids_R=new(torch.int64),
            positions_R=new(torch.int64),
            num_generated_R=new(torch.int64),
            max_tokens_R=new(torch.int64),
            is_stopped_R=new(torch.bool),
            is_done_R=new(torch.bool),
            keys_R=new(torch.int64),
            temperature_R=new(torch.float32),
            top_k_R=new(torch.int64),
            top_p_R=new(torch.float32),
            stop_ids_RS=new(torch.int64, num_stops),
            tokens_RN=new(torch.int64, num_tokens),
            logprobs_RN=new(torch.float32, num_tokens),
        )

    def __len__(self) -> int:
        return len(self.ids_R)

    def narrow(self, first: int, end: int) -> "Rows":
        return Rows(**{field.name: getattr(self, field.name)[first:end] for field in fields(self)})

    def start(
        self, samples: Sequence[SampleId], requests: Sequence[Request], vocab_size: int
    ) -> None:
        """Set rows up for samples whose prompt is in the cache and whose first token is to be
        drawn next.
        """
        params = [requests[sample.request_id].params for sample in samples]
        num_stops = self.stop_ids_RS.shape[1]

        def fill(target: Tensor, values: Sequence[object]) -> None:
            target.copy_(torch.tensor(values, dtype=target.dtype).view(target.shape))

        fill(self.positions_R, [len(requests[s.request_id].prompt_ids) - 1 for s in samples])
        fill(self.max_tokens_R, [p.max_tokens for p in params])
        fill(
            self.keys_R,
            [stream_key(p.seed, s.sample_id) for p, s in zip(params, samples, strict=True)],
        )
        fill(self.temperature_R, [p.temperature for p in params])
        fill(self.top_k_R, [min(p.top_k or vocab_size, vocab_size) for p in params])
        fill(self.top_p_R, [p.top_p for p in params])
        padding = [_NO_TOKEN] * num_stops
        fill(self.stop_ids_RS, [[*p.stop_token_ids, *padding][:num_stops] for p in params])
        for zeroed in (self.num_generated_R, self.is_stopped_R, self.is_done_R):
            zeroed.zero_()

    def move(self, sources: Tensor, targets: Tensor) -> None:
        for field in fields(self):
            tensor: Tensor = getattr(self, field.name)
            tensor[targets] = tensor[sources]

    def uniforms(self) -> Tensor:
        """The random number of each row's next token."""
        return uniforms(self.keys_R, self.positions_R + 1)

    def shaping(self, cuts: bool) -> Shaping:
        return Shaping(self.temperature_R, self.top_k_R, self.top_p_R, cuts)

    def accept(self, ids_R: Tensor, logprobs_R: Tensor) -> None:
        """Append the token just drawn to every row that is not finished."""
        is_live_R = ~self.is_done_R
        at_R1 = self.num_generated_R[:, None]
        self.tokens_RN.scatter_(1, at_R1, ids_R[:, None])
        self.logprobs_RN.scatter_(1, at_R1, logprobs_R[:, None])
        self.ids_R.copy_(ids_R)
        self.num_generated_R.add_(is_live_R)
        self.positions_R.add_(is_live_R)
        if self.stop_ids_RS.shape[1]:
            is_stop_R = (self.stop_ids_RS == ids_R[:, None]).any(-1)
            self.is_stopped_R.logical_or_(is_stop_R & is_live_R)
        torch.ge(self.num_generated_R, self.max_tokens_R, out=self.is_done_R)
        self.is_done_R.logical_or_(self.is_stopped_R)

    def outcomes(self, rows: Tensor) -> list[Outcome]:
        """The tokens of these rows as Python values."""
        lengths = self.num_generated_R[rows].tolist()
        width = max(lengths)
        logprobs_RN = self.logprobs_RN[rows, :width]
        is_own_RN = torch.arange(width, device=rows.device) < self.num_generated_R[rows, None]
        if not bool((logprobs_RN.isfinite() | ~is_own_RN).all()):
            raise FloatingPointError("engine: the model's logits are not finite (NaN or infinite)")
        columns = (self.tokens_RN[rows, :width], logprobs_RN, self.is_stopped_R[rows])
        return [
            Outcome(tuple(ids[:length]), tuple(logprobs[:length]), "stop" if is_stop else "length")
            for length, ids, logprobs, is_stop in zip(
                lengths, *(column.tolist() for column in columns), strict=True
            )
        ]
