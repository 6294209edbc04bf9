"""Runs the steps that the scheduler plans: tokens through the model, over the cache, and on to the next tokens.

N tokens of a step · B rows · D draws of a step · V vocabulary · L layers · P blocks of S slots of C numbers
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from nalar.config import ConfigError
from nalar.engine.blocks import NOBODY
from nalar.engine.config import EngineConfig
from nalar.engine.decode import ROW_TILE, Decoder, Model, RowTokens
from nalar.engine.drafting import Drafter, DraftModel, Part
from nalar.engine.pending import NO_GUESS, Pending, Prompts, pairs
from nalar.engine.rows import Batch, Rows, on_device, to_device
from nalar.engine.rules import Ruling
from nalar.engine.sample import Sample
from nalar.engine.scheduler import Plan, Prefill
from nalar.engine.sequence import PromptLogprob
from nalar.kernels.documents import Documents
from nalar.kernels.paging import Chunk, Paging
from nalar.kernels.sampling import Changes, Drawn, draw

SHORT = 64
"""Tokens behind what is cached that are computed as rows of one token each, where such rows are cheap."""
LOGIT_ROWS = 512
"""Tokens of a prompt whose logits exist at once."""


class Runner:
    """The cache, the rows and the model. Enters inference mode for itself, and lets no tensor out."""

    def __init__(
        self, model: Model, config: EngineConfig, num_blocks: int, device: torch.device
    ) -> None:
        self._model, self._config, self._device = model, config, device
        self._num_blocks = num_blocks
        self._drafter: Drafter | None = None
        per_sample = -(-config.max_model_len // config.block_size)
        vocab_size = model.config.vocab_size
        with torch.inference_mode():
            self._rows = Rows(
                config.max_num_seqs, per_sample, config.block_size, vocab_size, device
            )
            self._decoder = Decoder(model, config, self._rows, device)
        if config.speculation is not None and config.keeps_drafts:
            most = config.speculation.num_speculative_tokens
            draft_model = cast(DraftModel, model)
            self._drafter = Drafter(draft_model, self._rows, most, config.block_size, device)
        self._cache_LPSC: Tensor | None = None
        self._weight_places = _places(model)

    def drop_cache(self) -> None:
        """Free its memory; the next step takes it again."""
        self._cache_LPSC = None
        self._decoder.forget()
        if self._drafter is not None:
            self._drafter.forget()

    def check_weights(self) -> None:
        """Forget what was recorded of weights that are no longer where they were."""
        places = _places(self._model)
        if places != self._weight_places:
            self._weight_places = places
            self._decoder.forget()

    @torch.inference_mode()
    def launch(self, plan: Plan, rulings: Mapping[int, Ruling]) -> Pending:
        """Start a step. On a GPU the host goes on before it is done.

        rulings: by place among `plan.drawing`.
        """
        with torch.cuda.device_of(
            self._rows.ids_R
        ):  # kernels, events and graphs are of the current one
            return self._launch(plan, rulings)

    def _launch(self, plan: Plan, rulings: Mapping[int, Ruling]) -> Pending:
        samples = tuple(plan.drawing)
        if plan.started:
            self._rows.start(plan.started)
        self._rows.send_tables(plan.grown)
        if plan.decodes and not plan.prefills and self._config.speculation is None:
            return self._decode(plan, rulings)
        self._decoder.let_go()
        guesses_BK = self._guess(plan)
        run = self._by_rows if self._has_rows_alone(plan) else self._flat
        states_DD, parts = run(plan, guesses_BK)
        prompts = self._prompt_logprobs(parts)
        if self._drafter is not None:
            self._drafter.keep_up(parts, self._cache[-1])
            self._drafter.remember(plan, parts, states_DD)
        for source, target in plan.copies:
            self._cache[:, target] = self._cache[:, source]
        if not samples:
            nothing = torch.empty(0, 0)
            return Pending((), prompts, nothing, nothing, nothing)
        return self._draw(plan, samples, rulings, self._logits(states_DD), prompts, guesses_BK)

    def _decode(self, plan: Plan, rulings: Mapping[int, Ruling]) -> Pending:
        """Steps without prompts or guesses: all samples, the same way."""
        samples = plan.decodes
        batch = self._rows.batch(samples)
        if rulings or batch.kind.num_top is not None:
            logits_DV = self._decoder.logits(samples, batch, self._cache)
            return self._draw(plan, samples, rulings, logits_DV, (), None)
        drawn = self._decoder.run(samples, batch, max(plan.run, default=1), self._cache)
        found = (drawn.ids_B, drawn.logprobs_B, drawn.processed_B)
        ids, logprobs, processed = (self._to_host(x) for x in found)
        return Pending(samples, (), ids, logprobs, processed, plan.run, _event=self._event())

    @property
    def _cache(self) -> Tensor:
        if self._cache_LPSC is None:
            c = self._model.config
            layers = cache_layers(self._model, self._config)
            shape = (layers, self._num_blocks, self._config.block_size, c.cache_dim)
            try:
                self._cache_LPSC = zeros(shape, cache_dtype(self._model), self._device)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise ConfigError(
                    at="engine.num_blocks",
                    got=f"{self._num_blocks:,} blocks: a cache that {self._device} has no room for",
                    want="a cache that fits in the memory that is free",
                    hint="a smaller engine.num_blocks or engine.memory_frac",
                ) from error
        return self._cache_LPSC

    def _extend(self, ids_N: Tensor, paging: Paging) -> Tensor:
        own_LPSC = self._cache[: self._model.config.num_hidden_layers]
        return self._model.extend(ids_N, own_LPSC, paging)

    def _guess(self, plan: Plan) -> Tensor | None:
        """int64 [B, K] behind the newest tokens of `plan.decodes`, as many as are planned and any number behind."""
        if self._config.speculation is None:
            return None
        self._rows.settle(plan.decodes)
        if self._drafter is not None:
            return self._drafter.guess(plan, self._cache[-1])
        K = max(plan.num_drafts, default=0)
        guesses = [sample.drafts + [0] * (K - len(sample.drafts)) for sample in plan.decodes]
        return self._tensor(guesses) if K else None

    def _decoded(
        self, plan: Plan, rows_B: Tensor, guesses_BK: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Newest tokens and guesses: ids, positions and slots, [B, Q] each."""
        ids_BQ, newest_B = self._rows.ids_R[rows_B, None], self._rows.positions_R[rows_B]
        if guesses_BK is None:
            return ids_BQ, newest_B[:, None], self._rows.slots(rows_B, newest_B)[:, None]
        ids_BQ = torch.cat([ids_BQ, guesses_BK], 1)
        counts_B = self._tensor(plan.num_drafts) + 1
        return ids_BQ, *self._rows.window(rows_B, newest_B, counts_B, ids_BQ.shape[1])

    def _flat(self, plan: Plan, guesses_BK: Tensor | None) -> tuple[Tensor, list[Part]]:
        """All tokens of the step at once; states in the order of `plan.drawing`."""
        fresh = [p for p in plan.prefills if p.start == p.sample.num_found == 0]
        behind = [p for p in plan.prefills if p not in fresh]
        # Beside guesses rows would be of one token here and of several there.
        has_short = guesses_BK is None and self._decoder.reads_seen_blocks(self._cache)
        short = [p for p in behind if has_short and p.end - p.start <= SHORT]
        chunks = [p for p in behind if p not in short]
        prefills = [*fresh, *chunks, *short]
        tokens = self._prompt_tokens(prefills)
        rows, blocks = self._rows_of(short)
        Q = 1
        if plan.decodes:
            rows_B = self._rows.batch(plan.decodes).rows_B
            decoded = self._decoded(plan, rows_B, guesses_BK)
            Q = decoded[0].shape[1]
            tokens = [[*x, y.flatten()] for x, y in zip(tokens, decoded, strict=True)]
            rows.append(rows_B)
            blocks += (len(sample.blocks) for sample in plan.decodes)
        ids_N, positions_N, slots_N = (_joined(x) for x in tokens)
        paging = Paging(
            positions_N,
            slots_N,
            Documents.of([p.end for p in fresh], device=self._device) if fresh else None,
            tuple(self._chunk(p) for p in chunks),
            self._rows.tables_RM[_joined(rows), : max(blocks)] if rows else None,
            Q,
        )
        states_ND = self._extend(ids_N, paging)
        if not prefills and Q == 1:
            return states_ND, []
        num_prompt = sum(p.end - p.start for p in prefills)
        behind_D = [num_prompt + i for i in _planned(plan, Q)]
        return self._picked(plan, prefills, states_ND, behind_D)

    def _has_rows_alone(self, plan: Plan) -> bool:
        """Whether every token of this step is computed as a row."""
        if self._config.deterministic:
            return True
        num_tokens = sum(p.end - p.start for p in plan.prefills) + len(plan.decoded)
        num_keys = sum((p.end - p.start) * (p.end + p.start) // 2 for p in plan.prefills)
        return self._decoder.takes(num_tokens, num_keys, self._cache)

    def _rows_of(self, prefills: Sequence[Prefill]) -> tuple[list[Tensor], list[int]]:
        """The row of every token of these, and how many blocks each of them has."""
        rows = [row for p in prefills for row in [p.sample.row] * (p.end - p.start)]
        return [self._tensor(rows)] if rows else [], [len(p.sample.blocks) for p in prefills]

    def _by_rows(self, plan: Plan, guesses_BK: Tensor | None) -> tuple[Tensor, list[Part]]:
        """Every token a row of its own; states in the order of `plan.drawing`."""
        tokens = self._prompt_tokens(plan.prefills)
        rows, _ = self._rows_of(plan.prefills)
        if plan.decodes:
            rows_B = self._rows.batch(plan.decodes).rows_B
            decoded = self._decoded(plan, rows_B, guesses_BK)
            planned = self._tensor(_planned(plan, decoded[0].shape[1]))
            tokens = [[*x, y.flatten()[planned]] for x, y in zip(tokens, decoded, strict=True)]
            rows.append(self._tensor([sample.row for sample in plan.decoded]))
        each = RowTokens(*(_joined(x) for x in (*tokens, rows)))
        samples = [*(p.sample for p in plan.prefills), *plan.decodes]
        most = max(len(sample.blocks) for sample in samples)
        if self._config.deterministic:
            states_ND = self._tiled(each, most)
        else:
            states_ND = self._decoder.states(each, most, self._cache)
        N = len(each.ids_N)
        return self._picked(plan, plan.prefills, states_ND, range(N - len(plan.decoded), N))

    def _tiled(self, tokens: RowTokens, most_blocks: int) -> Tensor:
        """[N, D], ROW_TILE rows at a time."""
        N = len(tokens.ids_N)
        padding = self._tensor([0] * (-N % ROW_TILE))
        # Padding is position 0 of a row that is nobody's: it writes to nobody's block and reads it.
        more = (padding, padding, padding, padding + self._rows.nobody)
        padded = [torch.cat(pair).split(ROW_TILE) for pair in zip(tokens, more, strict=True)]
        states = []
        for ids, positions, slots, rows in zip(*padded, strict=True):
            tables_BM = self._rows.tables_RM[rows, :most_blocks]
            paging = Paging(positions, slots, tables_BM=tables_BM, tiled=True)
            states.append(self._extend(ids, paging))
        return torch.cat(states)

    def _picked(
        self,
        plan: Plan,
        prefills: Sequence[Prefill],
        states_ND: Tensor,
        decoded: Iterable[int],
    ) -> tuple[Tensor, list[Part]]:
        """The states that are drawn from, in the order of `plan.drawing`, and those of each prompt or chunk.

        prefills: as they stand in states_ND; decoded: places of what decodes.
        """
        where, start = {}, 0
        for p in prefills:
            where[p.sample] = (start, start + p.end - p.start)
            start += p.end - p.start
        last = [
            where[p.sample][1] - 1
            for p in plan.prefills
            if p.draws
            for _ in (p.sample, *p.followers)
        ]
        picked_DD = states_ND[self._tensor([*last, *decoded])]
        return picked_DD, [(p, states_ND[slice(*where[p.sample])]) for p in prefills]

    def _prompt_tokens(self, prefills: Sequence[Prefill]) -> list[list[Tensor]]:
        """Ids, positions and slots of prompts and chunks, on the device."""
        if not prefills:
            return [[], [], []]
        size = self._config.block_size
        ids, positions, slots = [], [], []
        for p in prefills:
            at_T = np.arange(p.start, p.end)
            blocks_M = np.array(p.sample.blocks)
            ids.append(np.array(p.sample.token_ids[p.start : p.end]))
            positions.append(at_T)
            slots_T = blocks_M[at_T // size] * size + at_T % size
            # What was found stays as it is, also where it is computed again.
            slots.append(np.where(at_T >= p.sample.num_found, slots_T, NOBODY))
        each = (ids, positions, slots)
        return [[to_device(torch.from_numpy(np.concatenate(x)), self._device)] for x in each]

    def _chunk(self, prefill: Prefill) -> Chunk:
        blocks = prefill.sample.blocks[: -(-prefill.end // self._config.block_size)]
        return Chunk(prefill.end - prefill.start, prefill.end, self._tensor(blocks))

    def _draw(
        self,
        plan: Plan,
        samples: tuple[Sample, ...],
        rulings: Mapping[int, Ruling],
        logits_DV: Tensor,
        prompts: Prompts,
        guesses_BK: Tensor | None,
    ) -> Pending:
        batch = self._rows.batch(samples)
        at_D = self._rows.positions_R[batch.rows_B] + 1
        guesses = None
        if guesses_BK is not None:
            at_D = at_D + self._tensor(plan.places)
            before_BQ = torch.nn.functional.pad(guesses_BK, (1, 0), value=NO_GUESS)
            before = before_BQ.flatten()[self._tensor(_planned(plan, before_BQ.shape[1]))]
            fresh = len(samples) - len(before)
            guesses = torch.nn.functional.pad(before, (fresh, 0), value=NO_GUESS)
            guesses = self._to_host(guesses)
        uniform_D = self._rows.uniforms(batch.rows_B, at_D)
        drawn, top = self._sampled(batch, logits_DV, uniform_D, self._changes(rulings))
        self._rows.accept(batch.rows_B, drawn.ids_B, at_D)
        forced = frozenset(i for i, rule in rulings.items() if rule.forced is not None)
        found = (drawn.ids_B, drawn.logprobs_B, drawn.processed_B)
        ids, logprobs, processed = (self._to_host(x[None]) for x in found)
        if top is not None:
            top = (self._to_host(top[0]), self._to_host(top[1]))
        event = self._event()
        return Pending(samples, prompts, ids, logprobs, processed, (), top, forced, guesses, event)

    def _to_host(self, x: Tensor) -> Tensor:
        """A copy that stays as it is, behind the event that comes next."""
        return x.clone() if x.device.type == "cpu" else x.to("cpu", non_blocking=True)

    def _event(self) -> torch.cuda.Event | None:
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _sampled(
        self, batch: Batch, logits_DV: Tensor, uniform_D: Tensor, changes: Changes | None
    ) -> tuple[Drawn, tuple[Tensor, Tensor] | None]:
        shaping = self._rows.shaping(*batch)
        top = None
        if batch.kind.num_top is not None:
            best = logits_DV.log_softmax(-1).topk(min(batch.kind.num_top, logits_DV.shape[-1]))
            top = (best.indices, best.values)
        return draw(logits_DV, uniform_D, shaping, changes), top

    def _logits(self, states_DD: Tensor) -> Tensor:
        """[D, V]; in deterministic mode a tile at a time."""
        if not self._config.deterministic:
            return self._model.logits(states_DD)
        D = len(states_DD)
        padded = torch.nn.functional.pad(states_DD, (0, 0, 0, -D % ROW_TILE))
        return torch.cat([self._model.logits(tile) for tile in padded.split(ROW_TILE)])[:D]

    def _changes(self, rulings: Mapping[int, Ruling]) -> Changes | None:
        bias: list[tuple[int, int, float]] = []
        allowed: dict[int, bytes] = {}
        forced: dict[int, int] = {}
        for i, rule in rulings.items():
            if rule.forced is not None:
                forced[i] = rule.forced
                continue
            bias += [(i, token, value) for token, value in rule.bias.items()]
            bias += [(i, token, -torch.inf) for token in rule.banned]
            if rule.allowed is not None:
                allowed[i] = rule.allowed
        if not (bias or allowed or forced):
            return None
        rows, ids, values = zip(*bias, strict=True) if bias else ((), (), ())
        return Changes(
            (self._tensor(rows), self._tensor(ids), self._tensor(values, torch.float32))
            if bias
            else None,
            (self._tensor(list(allowed)), self._masks(list(allowed.values()))) if allowed else None,
            (self._tensor(list(forced)), self._tensor(list(forced.values()))) if forced else None,
        )

    def _masks(self, allowed: Sequence[bytes]) -> Tensor:
        """uint8, one bit for each id of the vocabulary."""
        width = -(-self._model.config.vocab_size // 8)
        packed = bytearray().join(bits[:width].ljust(width, b"\0") for bits in allowed)
        masks = torch.frombuffer(packed, dtype=torch.uint8).view(-1, width)
        return masks.to(self._device, non_blocking=True)

    def _prompt_logprobs(self, parts: Sequence[tuple[Prefill, Tensor]]) -> Prompts:
        """Of the prompt tokens behind each of these states, where somebody asked."""
        found = []
        for prefill, states_TD in parts:
            sample = prefill.sample
            top = sample.request.params.prompt_logprobs
            if top is None:
                continue
            following = sample.request.prompt_ids[prefill.start + 1 : prefill.end + 1]
            entries: list[PromptLogprob] = []
            for a in range(0, len(following), LOGIT_ROWS):
                ids_T = self._tensor(following[a : a + LOGIT_ROWS])
                logits_TV = self._logits(states_TD[a : a + len(ids_T)])
                entries += _by_token(logits_TV.log_softmax(-1), ids_T, top)
            found.append((sample, tuple(entries)))
        return tuple(found)

    def _tensor(self, values: Sequence[object], dtype: torch.dtype = torch.int64) -> Tensor:
        return on_device(values, dtype, self._device)


def _by_token(logprobs_TV: Tensor, ids_T: Tensor, num_top: int) -> list[PromptLogprob]:
    own_T1 = logprobs_TV.gather(-1, ids_T[:, None])
    rank_T = (logprobs_TV > own_T1).sum(-1) + 1
    best = logprobs_TV.topk(min(num_top, logprobs_TV.shape[-1]))
    tops = pairs(best.indices, best.values)
    columns = (own_T1[:, 0].tolist(), rank_T.tolist(), tops)
    return [PromptLogprob(*entry) for entry in zip(*columns, strict=True)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _planned(plan: Plan, width: int) -> list[int]:
    """Where newest tokens and planned guesses stand among rows of `width`."""
    if not plan.num_drafts:
        return list(range(len(plan.decodes)))
    return [i * width + j for i, n in enumerate(plan.num_drafts) for j in range(1 + n)]


def _places(model: Model) -> tuple[int, ...]:
    """Where its weights lie in memory."""
    return tuple(x.data_ptr() for x in model.state_dict().values() if isinstance(x, Tensor))


def cache_layers(model: Model, config: EngineConfig) -> int:
    """Those of the model, and one for drafts."""
    return model.config.num_hidden_layers + config.keeps_drafts


def cache_dtype(model: Model) -> torch.dtype:
    """That of the weights."""
    dtypes = (tensor.dtype for tensor in model.state_dict().values())
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, since a masked weight of 0 times a stray NaN would be NaN. A CPU's memory is not touched before use."""
    if device.type != "cpu":
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    count = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(count, np.uint8)).view(dtype).view(tuple(shape))
