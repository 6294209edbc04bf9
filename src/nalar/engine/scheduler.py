"""Which sequences run, in which row of the batch. Knows no tensors and imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from nalar.engine.config import EngineConfig
from nalar.engine.sequence import Request

RELEASE_FRAC = 1 / 8
"""Finished rows stay in the batch until they make up this share of it: freeing rows one by one
costs more than they do.
"""


@dataclass(frozen=True, slots=True)
class SampleId:
    """One of the n samples of one request, both counted from 0 in the order they came."""

    request_id: int
    sample_id: int


@dataclass(frozen=True, slots=True)
class Admission:
    """What joins the batch now. New rows are appended behind the running ones, in this order."""

    samples: tuple[SampleId, ...]
    prefills: tuple[tuple[int, ...], ...]
    """Ids of requests met for the first time, cut into prefill calls."""
    keep_prefill: int | None
    """The request whose remaining samples still wait: its prompt will be needed again."""


@dataclass(frozen=True, slots=True)
class Release:
    """What left, and the moves that close the gaps: row sources[i] now lives in row targets[i]."""

    samples: tuple[SampleId, ...]
    sources: tuple[int, ...]
    targets: tuple[int, ...]


class Scheduler:
    """First come, first served: requests in order, their samples in order, as rows get free."""

    def __init__(self, requests: Sequence[Request], config: EngineConfig) -> None:
        self._requests = requests
        self._config = config
        self._next = SampleId(0, 0)
        self._num_waiting = sum(request.params.n for request in requests)
        self.running: list[SampleId] = []
        """The sample in each row of the batch."""

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    @property
    def has_work(self) -> bool:
        return bool(self.running or self._num_waiting)

    @property
    def can_admit(self) -> bool:
        return self._num_waiting > 0 and len(self.running) < self._config.max_num_seqs

    def admit(self) -> Admission:
        """Fill the free rows from the queue."""
        num_free = self._config.max_num_seqs - len(self.running)
        samples: list[SampleId] = []
        while len(samples) < num_free and len(samples) < self._num_waiting:
            samples.append(self._next)
            self._next = self._after(self._next)
        self._num_waiting -= len(samples)
        self.running += samples
        fresh = [sample.request_id for sample in samples if sample.sample_id == 0]
        is_cut_off = self._next.sample_id > 0
        return Admission(
            samples=tuple(samples),
            prefills=self._prefill_calls(fresh),
            keep_prefill=self._next.request_id if is_cut_off else None,
        )

    def should_release(self, num_done: int) -> bool:
        """Whether enough rows are finished to make it worth closing the gaps."""
        return num_done > 0 and num_done >= len(self.running) * RELEASE_FRAC

    def release(self, rows: Sequence[int]) -> Release:
        """Take finished rows out.

        Rows from the end of the batch move into the gaps, so that few rows move.
        """
        gone = set(rows)
        num_left = len(self.running) - len(gone)
        samples = tuple(self.running[row] for row in rows)
        targets = tuple(row for row in range(num_left) if row in gone)
        sources = tuple(row for row in range(num_left, len(self.running)) if row not in gone)
        for source, target in zip(sources, targets, strict=True):
            self.running[target] = self.running[source]
        del self.running[num_left:]
        return Release(samples, sources, targets)

    def _after(self, sample: SampleId) -> SampleId:
        if sample.sample_id + 1 < self._requests[sample.request_id].params.n:
            return SampleId(sample.request_id, sample.sample_id + 1)
        return SampleId(sample.request_id + 1, 0)

    def _prefill_calls(self, request_ids: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Cut requests into calls of at most max_prefill_tokens, padding counted."""
        calls: list[list[int]] = []
        longest = 0
        for request_id in request_ids:
            length = len(self._requests[request_id].prompt_ids)
            longest = max(longest, length)
            is_full = calls and longest * (len(calls[-1]) + 1) > self._config.max_prefill_tokens
            if is_full or not calls:
                calls.append([])
                longest = length
            calls[-1].append(request_id)
        return tuple(tuple(call) for call in calls)
