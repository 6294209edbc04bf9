"""Steps in which each row computes its newest token and draws the next: several in a row, and on a GPU recorded.

A step reads and writes nothing but tensors that stay where they are, and its shapes depend on numbers that the host
knows beforehand. So it can be recorded as a CUDA graph and replayed, which takes the host microseconds in place of
milliseconds. Rows of padding belong to nobody and write to nobody's block.

B rows of a step, padding included · K steps of a run · M blocks of a row · V vocabulary
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from nalar.config import ConfigError
from nalar.engine.config import EngineConfig
from nalar.engine.rows import Batch, Kind, Rows
from nalar.engine.sample import Sample
from nalar.engine.sampler import Drawn, draw, sample
from nalar.kernels.paging import Paging
from nalar.kernels.rows import Newest, keep, newest
from nalar.model.config import ModelConfig

ROW_TILE = 32
"""Tokens that deterministic mode computes at a time, never more and never fewer."""
FINE, COARSE = 8, 32
"""Up to COARSE rows a step is padded to the next power of two from 1 to FINE, or multiple of FINE; then of COARSE."""
REHEARSALS = 2
"""Before a step is recorded: kernels are compiled, and libraries take their memory."""


class Model(Protocol):
    """What the engine needs of a model."""

    @property
    def config(self) -> ModelConfig: ...

    def extend(self, ids_N: Tensor, cache_LPSC: Tensor, paging: Paging, /) -> Tensor:
        """The tokens of one step: writes their entries, attends up to each, returns states_ND."""
        ...

    def logits(self, states: Tensor, /) -> Tensor:
        """float32, [..., V]."""
        ...

    def state_dict(self) -> Mapping[str, Any]: ...


Step = Callable[[], None]


class Recorder(Protocol):
    """Keeps steps by what sets their shapes."""

    def __contains__(self, key: Hashable, /) -> bool: ...
    def record(self, key: Hashable, step: Step, /) -> None: ...
    def replay(self, key: Hashable, /) -> None: ...


class Graphs:
    """Steps as CUDA graphs, which share their memory: one is replayed at a time."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    def record(self, key: Hashable, step: Step) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(REHEARSALS):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                step()
        except RuntimeError as error:
            raise ConfigError(
                at="engine.enforce_eager",
                got=f"False, and a step that cannot be recorded: {error}",
                want="a model whose steps wait for nobody, and memory for the recording",
                hint="engine.enforce_eager=True, or a smaller engine.memory_frac",
            ) from error
        self._graphs[key] = graph

    def replay(self, key: Hashable) -> None:
        self._graphs[key].replay()


def recorder_for(device: torch.device, config: EngineConfig) -> Callable[[], Recorder] | None:
    """What records steps there; None: nothing does."""
    return Graphs if device.type == "cuda" and not config.enforce_eager else None


class Decoder:
    """Owns the tensors that steps read and write, besides the rows, the cache and the weights."""

    def __init__(
        self,
        model: Model,
        config: EngineConfig,
        rows: Rows,
        device: torch.device,
    ) -> None:
        self._model, self._rows, self._device = model, rows, device
        self._is_deterministic = config.deterministic
        self._make_recorder = recorder_for(device, config)
        self._recorder: Recorder | None = None
        self._recorded_for: Tensor | None = None
        """The cache that recorded steps read and write."""
        self._full_blocks = rows.tables_RM.shape[1]
        most = self._padded(config.max_num_seqs)
        steps = max(config.num_scheduler_steps or 1, REHEARSALS)

        def new(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._rows_B, self._limits_B = new(torch.int64, most), new(torch.int64, most)
        self._at_1 = new(torch.int64, 1)
        """Steps of this run so far."""
        kept = (torch.int64, torch.float32, torch.float32)
        ids_KB, logprobs_KB, processed_KB = (new(dtype, steps, most) for dtype in kept)
        self._kept_3KB = (ids_KB, logprobs_KB, processed_KB)
        self._logits_BV: Tensor | None = None

    def forget(self) -> None:
        """What was recorded: the cache, or a weight, is no longer where it was."""
        self._recorder = self._recorded_for = None

    def run(
        self, samples: Sequence[Sample], batch: Batch, num_steps: int, cache_LPSC: Tensor
    ) -> Drawn:
        """So many steps of samples that decode: [K, B], on the device. Valid until the next run.

        A row that is planned for fewer tokens goes on all the same; it writes to nobody's block then.
        """
        self._launch(samples, batch, batch.kind, num_steps, cache_LPSC)
        ids_KB, logprobs_KB, processed_KB = (x[:num_steps, : len(samples)] for x in self._kept_3KB)
        return Drawn(ids_KB, logprobs_KB, processed_KB)

    def logits(self, samples: Sequence[Sample], batch: Batch, cache_LPSC: Tensor) -> Tensor:
        """One step without a draw: float32 [B, V]. Valid until the next."""
        if self._logits_BV is None:
            shape = (len(self._rows_B), self._model.config.vocab_size)
            self._logits_BV = torch.zeros(shape, dtype=torch.float32, device=self._device)
        self._launch(samples, batch, None, 1, cache_LPSC)
        return self._logits_BV[: len(samples)]

    def _launch(
        self,
        samples: Sequence[Sample],
        batch: Batch,
        kind: Kind | None,
        num_steps: int,
        cache_LPSC: Tensor,
    ) -> None:
        B = self._padded(len(samples))
        M = self._width(samples)
        step = partial(self._step, kind, B, M, cache_LPSC)
        recorder = self._recorder_for(cache_LPSC)
        key = (kind, B, M)
        if recorder is not None and key not in recorder:
            self._aim(B, None, ())
            recorder.record(key, step)
        # Each computes up to the token before the last that it draws.
        self._aim(B, batch.rows_B, [sample.num_computed for sample in samples])
        for _ in range(num_steps):
            if recorder is None:
                step()
            else:
                recorder.replay(key)

    def _aim(self, B: int, rows: Tensor | None, limits: Sequence[int]) -> None:
        """At these rows; what is left of B is nobody's, and stays at position 0."""
        n = len(limits)
        if n < B:
            self._rows_B[n:B] = self._rows.nobody
            self._limits_B[n:B] = 1
        if rows is not None:
            self._rows_B[:n] = rows
            limits_B = torch.tensor(limits, dtype=torch.int64)
            self._limits_B[:n].copy_(limits_B, non_blocking=True)
        self._at_1.zero_()

    def _step(self, kind: Kind | None, B: int, M: int, cache_LPSC: Tensor) -> None:
        own, rows_B, limits_B = self._rows, self._rows_B[:B], self._limits_B[:B]
        tables = (own.ids_R, own.positions_R, own.tables_RM)
        step = newest(rows_B, limits_B, *tables, width=M, block_size=own.block_size)
        logits_BV = self._logits(step, cache_LPSC)
        if kind is None:
            assert self._logits_BV is not None
            self._logits_BV[:B] = logits_BV
            return
        at_B = step.positions_B + 1
        if kind.cuts or kind.penalizes:
            drawn = draw(logits_BV, own.uniforms(rows_B, at_B), own.shaping(rows_B, kind))
        else:
            warm = None if kind.is_plain else own.temperature_R
            drawn = sample(logits_BV, own.keys_R, at_B, warm, rows_B)
        new = (drawn.ids_B, drawn.logprobs_B, drawn.processed_B)
        keep(rows_B, at_B, *new, own.ids_R, own.positions_R, self._kept_3KB, self._at_1)
        if kind.penalizes:
            own.count(rows_B, drawn.ids_B)

    def _logits(self, step: Newest, cache_LPSC: Tensor) -> Tensor:
        tile = ROW_TILE if self._is_deterministic else len(step.ids_B)
        parts = zip(*(x.split(tile) for x in step), strict=True)
        found = []
        for ids, positions, slots, tables in parts:
            paging = Paging(positions, slots, tables_BM=tables, tiled=self._is_deterministic)
            found.append(self._model.logits(self._model.extend(ids, cache_LPSC, paging)))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _padded(self, count: int) -> int:
        """Rows of a step for this many samples."""
        if self._is_deterministic:
            return -(-count // ROW_TILE) * ROW_TILE
        if self._make_recorder is None:
            return count
        if count <= FINE:
            return 1 << (count - 1).bit_length()
        step = FINE if count <= COARSE else COARSE
        return -(-count // step) * step

    def _width(self, samples: Sequence[Sample]) -> int:
        """Blocks of each row in the tables: few widths where steps are recorded."""
        most = max(len(sample.blocks) for sample in samples)
        if self._make_recorder is None:
            return most
        return min(1 << (most - 1).bit_length(), self._full_blocks)

    def _recorder_for(self, cache_LPSC: Tensor) -> Recorder | None:
        if self._make_recorder is None:
            return None
        if self._recorder is None or self._recorded_for is not cache_LPSC:
            self._recorder, self._recorded_for = self._make_recorder(), cache_LPSC
        return self._recorder
