"""Drives the model: prompts into the cache, then one token a row and step until it is released.

B rows · P requests in a prefill call · T positions · L layers · D hidden width · V vocabulary
C what a token leaves in the cache of a layer
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from nalar.config import UserError
from nalar.engine.batch import Outcome, Rows
from nalar.engine.cache import TokenCache
from nalar.engine.config import EngineConfig
from nalar.engine.sampler import Banned, sample
from nalar.engine.scheduler import Admission, Release
from nalar.engine.sequence import BannedTokens, Request, SamplingParams
from nalar.model.config import ModelConfig


class Model(Protocol):
    """What the engine needs of a model."""

    @property
    def config(self) -> ModelConfig: ...

    def prefill(self, ids_PT: Tensor, /) -> tuple[Tensor, Tensor]:
        """Right-padded prompts to (states_PTD, entries_LPTC). Padding is never looked at."""
        ...

    def decode(self, ids_B: Tensor, positions_B: Tensor, cache_LBTC: Tensor, /) -> Tensor:
        """Write each token's entry at its position, attend up to there, return states_BD."""
        ...

    def logits(self, states: Tensor, /) -> Tensor:
        """float32, [..., V]."""
        ...

    def state_dict(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class _Watched:
    """A row with a rule of what may not come next, and the ids the rule has seen so far."""

    rule: BannedTokens
    past: list[int]


class Runner:
    """The tensors of one call of the engine. Dropping it frees everything.

    Every method that touches tensors enters inference mode for itself, so the mode never reaches
    the caller, and tensors leave as Python values only.
    """

    def __init__(
        self, model: Model, requests: Sequence[Request], config: EngineConfig, device: torch.device
    ) -> None:
        self._model = model
        self._requests = requests
        self._device = device
        num_slots = min(config.max_num_seqs, sum(request.params.n for request in requests))
        shape = model.config
        self._cache = TokenCache(
            shape.num_hidden_layers, num_slots, shape.cache_dim, config.max_model_len
        )
        with torch.inference_mode():
            self._all_rows = Rows.for_requests(requests, num_slots, device)
            self._rows = self._all_rows.narrow(0, 0)
        self._prompts: dict[int, tuple[Tensor, Tensor]] = {}
        self._cuts = any(_cuts(request.params) for request in requests)
        self._is_plain = not self._cuts and all(r.params.temperature == 1 for r in requests)
        self._watched: dict[int, _Watched] = {}
        self._length = 0  # of the longest row, as stored in the cache

    @torch.inference_mode()
    def admit(self, admission: Admission) -> None:
        """Prefill new prompts, give every new sample its row, and draw its first token."""
        for request_ids in admission.prefills:
            self._prefill(request_ids)
        first = len(self._rows)
        self._rows = self._all_rows.narrow(0, first + len(admission.samples))
        rows = self._rows.narrow(first, len(self._rows))
        rows.start(admission.samples, self._requests, self._model.config.vocab_size)
        row = first
        for request_id, group in groupby(admission.samples, lambda sample: sample.request_id):
            end = row + len(list(group))
            self._cache.store_prompt(row, end - row, self._prompts[request_id][0])
            rule = self._requests[request_id].banned_tokens
            if rule is not None:
                self._watched.update({new: _Watched(rule, []) for new in range(row, end)})
            row = end
        logits_BV = torch.stack([self._prompts[s.request_id][1] for s in admission.samples])
        keep = admission.keep_prefill
        self._prompts = {} if keep is None else {keep: self._prompts[keep]}
        self._length = max(self._length, int(rows.positions_R.max()) + 1)
        self._draw(rows, first, logits_BV)

    @torch.inference_mode()
    def decode(self) -> None:
        """One more token for every row."""
        self._length += 1
        rows = self._rows
        cache_LBTC = self._cache.view(len(rows), self._length)
        states_BD = self._model.decode(rows.ids_R, rows.positions_R, cache_LBTC)
        self._draw(rows, 0, self._model.logits(states_BD))

    def num_done(self) -> int:
        """Finished rows not yet released.

        The one place per step where the host waits for the device.
        """
        return int(self._rows.is_done_R.count_nonzero())

    def done_rows(self) -> list[int]:
        rows: list[int] = self._rows.is_done_R.nonzero()[:, 0].tolist()
        return rows

    def last_token(self, row: int) -> tuple[int, float]:
        """The token that a row drew last and its logprob."""
        at = int(self._rows.num_generated_R[row]) - 1
        return int(self._rows.tokens_RN[row, at]), float(self._rows.logprobs_RN[row, at])

    @torch.inference_mode()
    def outcomes(self, rows: Sequence[int]) -> list[Outcome]:
        return self._rows.outcomes(torch.tensor(rows, device=self._device))

    @torch.inference_mode()
    def release(self, rows: Sequence[int], release: Release) -> None:
        """Give rows back and close the gaps."""
        for row in rows:
            self._watched.pop(row, None)
        num_left = len(self._rows) - len(rows)
        if release.sources:
            sources = torch.tensor(release.sources, device=self._device)
            targets = torch.tensor(release.targets, device=self._device)
            self._cache.move(sources, targets, self._length)
            self._rows.move(sources, targets)
        for source, target in zip(release.sources, release.targets, strict=True):
            if source in self._watched:
                self._watched[target] = self._watched.pop(source)
        self._rows = self._all_rows.narrow(0, num_left)
        # The last token drawn is not in the cache yet, so its position is the length of what is.
        self._length = int(self._rows.positions_R.max()) if num_left else 0

    def _prefill(self, request_ids: Sequence[int]) -> None:
        prompts = [self._requests[request_id].prompt_ids for request_id in request_ids]
        longest = max(map(len, prompts))
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        states_PTD, entries_LPTC = self._model.prefill(torch.tensor(padded, device=self._device))
        ends_P = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self._device)
        rows_P = torch.arange(len(prompts), device=self._device)
        logits_PV = self._model.logits(states_PTD[rows_P, ends_P])
        for i, request_id in enumerate(request_ids):
            entries_LTC = entries_LPTC[:, i, : len(prompts[i])]
            self._prompts[request_id] = (entries_LTC, logits_PV[i])

    def _draw(self, rows: Rows, first: int, logits_BV: Tensor) -> None:
        """Draw and record one token for each of these rows, the first of which is row `first`."""
        shaping = None if self._is_plain else rows.shaping(self._cuts)
        watched = self._watched_among(rows, first) if self._watched else {}
        banned = _banned(watched, self._model.config.vocab_size) if watched else None
        ids_B, logprobs_B = sample(logits_BV, rows.uniforms(), shaping, banned)
        rows.accept(ids_B, logprobs_B)
        if watched:
            new_ids = ids_B.tolist()
            for row, watch in watched.items():
                watch.past.append(new_ids[row])

    def _watched_among(self, rows: Rows, first: int) -> dict[int, _Watched]:
        """Those of these rows that are watched and not finished, counted from `first`."""
        is_done = rows.is_done_R.tolist()
        return {
            row - first: watch
            for row, watch in self._watched.items()
            if row >= first and not is_done[row - first]
        }


def _banned(watched: Mapping[int, _Watched], vocab_size: int) -> Banned | None:
    rows: list[int] = []
    ids: list[int] = []
    for row, watch in watched.items():
        banned = set(watch.rule(tuple(watch.past)))
        if len(banned) >= vocab_size or any(not 0 <= i < vocab_size for i in banned):
            raise UserError(
                at="request.banned_tokens",
                got=f"{len(banned)} ids from {min(banned)} to {max(banned)}",
                want=f"ids from 0 to {vocab_size - 1} (the vocabulary), not all of them",
            )
        rows += [row] * len(banned)
        ids += banned
    return (rows, ids) if rows else None


def _cuts(params: SamplingParams) -> bool:
    return params.top_k is not None or params.top_p < 1
