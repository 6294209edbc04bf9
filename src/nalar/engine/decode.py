"""Steps of rows, on a GPU recorded: of newest tokens, several such steps in a row, each with its draw; of prompts.

A step reads and writes nothing but tensors that stay where they are, and its shapes depend on numbers that the host
knows beforehand. So it can be recorded as a CUDA graph and replayed, which takes the host microseconds in place of
milliseconds. Rows of padding belong to nobody and write to nobody's block.

B rows of a step, padding included · K steps of a run · M blocks of a row · N tokens of prompts and rows · D hidden
V vocabulary · L layers, P blocks of S slots of C numbers: the cache
"""

import functools
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nalar.config import ConfigError
from nalar.engine.config import EngineConfig
from nalar.engine.rows import Batch, Kind, Rows
from nalar.engine.sample import Sample
from nalar.kernels.attention import reads_seen_blocks
from nalar.kernels.grouped import NeedsHost
from nalar.kernels.paging import Held, Paging
from nalar.kernels.rows import Newest, keep, newest
from nalar.kernels.sampling import Drawn, draw, sample
from nalar.model.config import ModelConfig

ROW_TILE = 32
"""Tokens that deterministic mode computes at a time, never more and never fewer."""
FINE, COARSE = 8, 32
"""Up to COARSE rows a step is padded to the next power of two from 1 to FINE, or multiple of FINE; then of COARSE."""
LEAST_TOKENS, EVEN_TOKENS = 16, 1024
"""A step that computes prompts as rows is padded to the next power of two, from EVEN_TOKENS on to a multiple of it."""
MOST_NUMBERS, MOST_KEYS = 2**23, 2**20
"""Tokens times hidden size, which the recording keeps memory for, and keys that its rows read, up to which it pays."""
MOST_HELD_BYTES = 2**28
"""What rows may have in a second copy of the cache, side by side."""
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


class RowTokens(NamedTuple):
    """What a step computes, each with the row that it belongs to; int64."""

    ids_N: Tensor
    positions_N: Tensor
    slots_N: Tensor
    rows_N: Tensor


Step = Callable[[], None]


class Recorder(Protocol):
    """Keeps steps by what sets their shapes."""

    def __contains__(self, key: Hashable, /) -> bool: ...
    def record(self, key: Hashable, step: Step, /) -> None: ...
    def replay(self, key: Hashable, /) -> None: ...


class Graphs:
    """Steps as CUDA graphs, which share their memory: one is replayed at a time.

    A step that must ask the host is launched as it is, and that is said once.
    """

    def __init__(self) -> None:
        self._steps: dict[Hashable, Step] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._steps

    def record(self, key: Hashable, step: Step) -> None:
        try:
            self._steps[key] = self._recorded(step).replay
        except NeedsHost as why:
            _say(f"engine: steps are launched kernel by kernel, not recorded: {why}")
            self._steps[key] = step
        except RuntimeError as error:
            raise ConfigError(
                at="engine.enforce_eager",
                got=f"False, and a step that cannot be recorded: {error}",
                want="a model whose steps wait for nobody, and memory for the recording",
                hint="engine.enforce_eager=True, or a smaller engine.memory_frac",
            ) from error

    def _recorded(self, step: Step) -> torch.cuda.CUDAGraph:
        graph, aside = torch.cuda.CUDAGraph(), _aside(torch.cuda.current_device())
        aside.wait_stream(torch.cuda.current_stream())
        # Around the recording too, which does not come back to the stream before it where it fails.
        with torch.cuda.stream(aside):
            for _ in range(REHEARSALS):
                step()
            _forget_workspaces()
            # What other threads do meanwhile is their own affair.
            with torch.cuda.graph(graph, self._pool, aside, capture_error_mode="thread_local"):
                step()
            _forget_workspaces()
        torch.cuda.current_stream().wait_stream(aside)
        return graph

    def replay(self, key: Hashable) -> None:
        self._steps[key]()


@functools.cache
def _say(what: str) -> None:
    """Once."""
    logging.getLogger(__name__).warning(what)


@functools.cache
def _aside(device: int) -> torch.cuda.Stream:
    """One for all recordings: a library keeps memory for every stream that it has worked on."""
    return torch.cuda.Stream(device)


def _forget_workspaces() -> None:
    """cuBLAS's memory for sums, one for each stream, which anybody may free: torch.compile's own graphs do.

    A recording that found none takes it from the memory of recordings, where it stays as long as they do.
    """
    torch._C._cuda_clearCublasWorkspaces()


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
        self._held: Held = {}
        self._held_for: tuple[Sample, ...] = ()
        """Whose entries are held side by side, as of the last step of all."""
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
        numbers = MOST_NUMBERS // model.config.hidden_size
        self._most_tokens = max(min(numbers, 8 * EVEN_TOKENS) // EVEN_TOKENS, 1) * EVEN_TOKENS
        self._tokens_4B: Tensor | None = None
        self._states_BD = torch.empty(0, device=device)
        self._nobody_41 = torch.tensor([[0], [0], [0], [rows.nobody]], device=device)

    def forget(self) -> None:
        """What was recorded: the cache, or a weight, is no longer where it was."""
        self._recorder = self._recorded_for = None
        self.let_go()

    def let_go(self) -> None:
        """Of what is held for a next step of the same rows: there is a step in between."""
        self._held, self._held_for = {}, ()

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

    def reads_seen_blocks(self, cache_LPSC: Tensor) -> bool:
        """Whether a row costs what it sees, however wide the table is."""
        c = self._model.config
        if self._is_deterministic:
            return False
        is_latent, width = c.kv_lora_rank is not None, c.kv_lora_rank or c.qk_head_dim
        return reads_seen_blocks(cache_LPSC[0], width, is_latent=is_latent)

    def takes(self, num_tokens: int, num_keys: int, cache_LPSC: Tensor) -> bool:
        """Whether `states` has room for so many, and gains by it: rows read the keys of their prompts one by one."""
        if self._make_recorder is None or not self.reads_seen_blocks(cache_LPSC):
            return False
        return num_tokens <= self._most_tokens and num_keys <= MOST_KEYS

    def states(self, tokens: RowTokens, most_blocks: int, cache_LPSC: Tensor) -> Tensor:
        """Tokens of any kind, each a row of its own over what the cache holds of its sequence: [N, D].

        Prompts so short that the host would take longer to launch them than the device to compute them. Valid until
        the next call.
        """
        N, D = len(tokens.ids_N), self._model.config.hidden_size
        even = -(-N // EVEN_TOKENS) * EVEN_TOKENS
        B = even if N > EVEN_TOKENS else max(LEAST_TOKENS, 1 << (N - 1).bit_length())
        M = self._width(most_blocks, cache_LPSC)
        if self._tokens_4B is None:
            shape = (4, self._most_tokens)
            self._tokens_4B = torch.zeros(shape, dtype=torch.int64, device=self._device)
            self._states_BD = cache_LPSC.new_zeros(self._most_tokens, D)
        tokens_4B, recorder = self._tokens_4B, self._recorder_for(cache_LPSC)
        assert recorder is not None
        key = ("tokens", B, M)
        if key not in recorder:
            tokens_4B[:] = self._nobody_41
            recorder.record(key, partial(self._extend, B, M, cache_LPSC))
        tokens_4B[:, :N] = torch.stack(tokens)
        tokens_4B[:, N:B] = self._nobody_41
        recorder.replay(key)
        return self._states_BD[:N]

    def _extend(self, B: int, M: int, cache_LPSC: Tensor) -> None:
        assert self._tokens_4B is not None
        ids_B, positions_B, slots_B, rows_B = self._tokens_4B[:, :B]
        paging = Paging(positions_B, slots_B, tables_BM=self._rows.tables_RM[rows_B, :M])
        own_LPSC = cache_LPSC[: self._model.config.num_hidden_layers]  # drafts have a layer behind
        self._states_BD[:B] = self._model.extend(ids_B, own_LPSC, paging)

    def _launch(
        self,
        samples: Sequence[Sample],
        batch: Batch,
        kind: Kind | None,
        num_steps: int,
        cache_LPSC: Tensor,
    ) -> None:
        B = self._padded(len(samples))
        M = self._width(max(len(sample.blocks) for sample in samples), cache_LPSC)
        step = partial(self._step, kind, B, M, cache_LPSC)
        recorder = self._recorder_for(cache_LPSC)
        if self._held_for != tuple(samples):
            self._held, self._held_for = {}, tuple(samples)
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
            paging = Paging(
                positions,
                slots,
                tables_BM=tables,
                tiled=self._is_deterministic,
                held=self._held if self._may_hold(tables, cache_LPSC) else None,
            )
            found.append(self._model.logits(self._model.extend(ids, cache_LPSC, paging)))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _may_hold(self, tables_BM: Tensor, cache_LPSC: Tensor) -> bool:
        """Whether rows are read by a gather, which need not be made anew at every step, and have the room."""
        if self._is_deterministic or self._make_recorder or self._device.type != "cpu":
            return False
        L, _, S, C = cache_LPSC.shape
        return L * tables_BM.numel() * S * C * cache_LPSC.itemsize <= MOST_HELD_BYTES

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

    def _width(self, most_blocks: int, cache_LPSC: Tensor) -> int:
        """Blocks of each row in the tables. Where steps are recorded one width, or few if attention reads it all."""
        if self._make_recorder is None:
            return most_blocks
        if self.reads_seen_blocks(cache_LPSC):
            return self._full_blocks
        return min(1 << (most_blocks - 1).bit_length(), self._full_blocks)

    def _recorder_for(self, cache_LPSC: Tensor) -> Recorder | None:
        if self._make_recorder is None:
            return None
        if self._recorder is None or self._recorded_for is not cache_LPSC:
            self._recorder, self._recorded_for = self._make_recorder(), cache_LPSC
        return self._recorder
