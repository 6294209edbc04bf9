"""Do sampler and trainer agree? Log-probabilities and chosen experts of real rollouts, compared token by token.

L mixture layers · M sequences of a batch · P positions · K experts a token · N tokens of a step
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from controls.finished import Finished
from controls.results import Agreement, Routed
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.pending import Pending
from nalar.engine.rules import Ruling
from nalar.engine.runner import Runner
from nalar.engine.sample import Sample
from nalar.engine.scheduler import Plan
from nalar.engine.sequence import Event, Request
from nalar.kernels.paging import Paging
from nalar.model.moe import Router
from nalar.model.transformer import Transformer
from nalar.pipeline.evaluation import engine_for
from nalar.pipeline.tools import environments
from nalar.rl.batches import policy_batches, trainer_logprobs
from nalar.rl.collector import collect
from nalar.rl.lessons import Lesson
from nalar.rl.rollout import Rollout, draw_problems

ROLLOUTS = 256
TOLERANCE = 1e-5


@dataclass
class RouterLog:
    """What the routers chose since it was last emptied, layer after layer, call after call."""

    ids: list[Tensor] = field(default_factory=list)
    """[tokens, K], each row sorted: the order of equals does not matter."""
    margins: list[Tensor] = field(default_factory=list)

    def take(self, layers: int) -> list[tuple[Tensor, Tensor]]:
        """Ids [L, tokens, K] and margins [L, tokens] of each call of the model since the last take."""
        ids, margins = self.ids, self.margins
        self.ids, self.margins = [], []
        return [
            (torch.stack(ids[i : i + layers]), torch.stack(margins[i : i + layers]))
            for i in range(0, len(ids), max(layers, 1))
        ]

    def hook(self, router: torch.nn.Module, args: tuple[Any, ...], out: tuple[Tensor, ...]) -> None:
        assert isinstance(router, Router)
        with torch.no_grad():
            self.ids.append(out[0].sort(-1).values.clone())
            self.margins.append(router_margins(router, args[0]))


def router_margins(router: Router, x_TD: Tensor) -> Tensor:
    """By how much the last expert chosen beat the first not chosen; infinite where all are chosen."""
    k = router.config.num_experts_per_tok
    scores = torch.nn.functional.linear(x_TD.float(), router.weight.float()).sigmoid()
    biased = scores + router.e_score_correction_bias
    if biased.shape[-1] == k:
        return biased.new_full((len(biased),), torch.inf)
    top = biased.topk(k + 1, dim=-1).values
    return top[:, k - 1] - top[:, k]


@contextmanager
def watched(model: Transformer, log: RouterLog | None = None) -> Iterator[RouterLog]:
    log = RouterLog() if log is None else log
    handles = [router.register_forward_hook(log.hook) for router in model.routers()]
    try:
        yield log
    finally:
        for handle in handles:
            handle.remove()


class WatchedModel:
    """A model that notes the experts of every token it passes, and where in the cache the token went."""

    def __init__(self, model: Transformer, log: RouterLog) -> None:
        self.config, self.logits, self.state_dict = model.config, model.logits, model.state_dict
        self._model, self._log = model, log
        self._layers = sum(1 for _ in model.routers())
        self.passed: list[tuple[Tensor, Tensor]] = []
        """Slots [N] and ids [L, N, K], call after call."""

    def extend(self, ids_N: Tensor, cache_LPSC: Tensor, paging: Paging) -> Tensor:
        states_ND = self._model.extend(ids_N, cache_LPSC, paging)
        for ids_LNK, _ in self._log.take(self._layers):
            self.passed.append((paging.slots_N, ids_LNK))
        return states_ND


class WatchedRunner(Runner):
    """Tells by the plan of a step whose tokens went where."""

    def __init__(self, model: WatchedModel, config: EngineConfig, num_blocks: int) -> None:
        device = torch.device(model.state_dict()["model.norm.weight"].device)
        super().__init__(model, config, num_blocks, device)
        self._watched, self._block_size = model, config.block_size
        self.experts: dict[Sample, dict[int, Tensor]] = {}
        """[L, K] by position, of the first pass where a preempted sample is computed anew."""

    def launch(self, plan: Plan, rulings: Mapping[int, Ruling]) -> Pending:
        pending = super().launch(plan, rulings)
        places = [(p.sample, range(p.start, p.end)) for p in plan.prefills]
        places += [(s, range(s.num_computed - 1, s.num_computed)) for s in plan.decodes]
        owners = {self._slot(s, at): (s, at) for s, positions in places for at in positions}
        for sample, _ in places:
            self.experts.setdefault(sample, {})
        for slots_N, ids_LNK in self._watched.passed:
            for slot, ids_LK in zip(slots_N.tolist(), ids_LNK.unbind(1), strict=True):
                if slot in owners:
                    sample, at = owners[slot]
                    self.experts[sample].setdefault(at, ids_LK)
        self._watched.passed.clear()
        for p in plan.prefills:
            for follower in p.followers:
                self.experts[follower] = dict(self.experts[p.sample])
        return pending

    def _slot(self, sample: Sample, position: int) -> int:
        return sample.blocks[position // self._block_size] * self._block_size + (
            position % self._block_size
        )


class WatchedEngine(Engine):
    """The engine itself, which also keeps the experts of every token that it passes through the model."""

    def __init__(self, model: Transformer, config: EngineConfig) -> None:
        # What is found in the cache passes no router; and whose token passes is told by the plan of one step.
        own = {"enable_prefix_caching": False, "num_scheduler_steps": 1}
        config = config.model_copy(update=own)
        self._transformer, self._log = model, RouterLog()
        watched_model = WatchedModel(model, self._log)
        super().__init__(watched_model, config)
        self._runner = self._watching = WatchedRunner(watched_model, config, self._num_blocks)
        self._lengths: dict[int, dict[int, int]] = {}
        """Tokens of each sample that pass the model, by request."""
        self._prompts: dict[int, int] = {}

    def add(self, request: Request) -> int:
        request_id = super().add(request)
        self._lengths[request_id], self._prompts[request_id] = {}, len(request.prompt_ids)
        return request_id

    def step(self) -> list[Event]:
        with watched(self._transformer, self._log):
            events = super().step()
        for event in events:
            if event.completion is not None:
                length = self._prompts[event.request_id] + len(event.completion.token_ids) - 1
                self._lengths[event.request_id][event.sample_id] = length
        return events

    def experts(self) -> list[list[Tensor]]:
        """By request and sample: [L, P, K] over the prompt and all but the last response token."""
        known = {(s.request_id, s.sample_id): e for s, e in self._watching.experts.items()}
        return [
            [_joined(known[request_id, i], lengths[i]) for i in sorted(lengths)]
            for request_id, lengths in self._lengths.items()
        ]


def _joined(experts: Mapping[int, Tensor], count: int) -> Tensor:
    if not experts:  # a model without routers
        return torch.zeros(0, 0, 0, dtype=torch.int64)
    return torch.stack([experts[at] for at in range(count)], dim=1)


@dataclass
class _Tally:
    difference_N: list[Tensor] = field(default_factory=list)
    apart_N: list[Tensor] = field(default_factory=list)
    rerouted: list[Routed] = field(default_factory=list)


def agreement(finished: Finished) -> Agreement:
    """Fresh rollouts of the final model on train problems, as RL would sample them next."""
    config = finished.config
    model, tokenizer = finished.final()
    engine = WatchedEngine(model, engine_for(model, config).config)
    tasks = finished.rl_tasks
    count = -(-ROLLOUTS // config.rl.group_size)
    problems = draw_problems(tasks, count, config.seed, config.rl.steps)
    groups = collect(
        *(engine, tokenizer, tasks, problems, config.rl),
        seed=config.seed,
        make_environment=environments(config.tools, tokenizer),
    )
    rollouts = [r for group in groups for r in group]
    experts = [e for group in engine.experts() for e in group]
    tally = _compare(model, rollouts, experts, config.rl.micro_batch_tokens)
    difference_N, is_apart_N = torch.cat(tally.difference_N), torch.cat(tally.apart_N)
    together_N, apart_N = difference_N[~is_apart_N], difference_N[is_apart_N]
    firsts = [m.values.get("first_log_ratio_rms") for m in finished.run.metrics("rl")]
    return Agreement(
        rollouts=len(rollouts),
        tokens=len(difference_N),
        max_difference=float(together_N.max()),
        within_1e_5_frac=float((together_N <= TOLERANCE).double().mean()),
        rerouted=tally.rerouted,
        apart_tokens=len(apart_N),
        apart_max_difference=float(apart_N.max()) if len(apart_N) else None,
        first_log_ratio_rms=max((x for x in firsts if x is not None), default=None),
    )


@torch.no_grad()
def _compare(
    model: Transformer, rollouts: Sequence[Rollout], experts: Sequence[Tensor], max_tokens: int
) -> _Tally:
    """The trainer's own batches, so its own rounding too."""
    tally, layers = _Tally(), sum(1 for _ in model.routers())
    by_id = {id(r): e for r, e in zip(rollouts, experts, strict=True)}
    # policy_batches sorts by length, and a stable sort of what is sorted changes nothing
    ordered = sorted(rollouts, key=lambda r: len(r.prompt_ids) + len(r.response.token_ids))
    batches = policy_batches(
        [Lesson(r, 1.0) for r in ordered], max_tokens=max_tokens, device=model.head_weight.device
    )
    start = 0
    for batch in batches:
        part = ordered[start : start + int((batch.documents.positions_N == 0).sum())]
        start += len(part)
        with watched(model) as log:
            logprobs_N, _, _ = trainer_logprobs(model, batch)
        difference_N = (logprobs_N - batch.old_logprobs_N).abs()
        tally.difference_N.append(difference_N)
        if not layers:
            tally.apart_N.append(torch.zeros(len(difference_N), dtype=torch.bool))
            continue
        [(ids_LNK, margins_LN)] = log.take(layers)
        at = first = 0
        for rollout in part:
            count = len(rollout.response.token_ids)
            places = slice(first, first + len(rollout.prompt_ids) + count - 1)
            own = difference_N[at : at + count]
            at, first = at + count, places.stop
            is_other_LP = (ids_LNK[:, places] != by_id[id(rollout)]).any(-1)
            is_apart_P = is_other_LP.any(0).cumsum(0) > 0
            tally.apart_N.append(is_apart_P[-count:])
            if is_apart_P.any():
                tally.rerouted.append(_first(is_other_LP, margins_LN[:, places], own))
    return tally


def _first(is_other_LP: Tensor, margins_LP: Tensor, difference_N: Tensor) -> Routed:
    """The first token whose experts differ, at its lowest such layer: all later ones may follow from it."""
    position = int(is_other_LP.any(0).int().argmax())
    layer = int(is_other_LP[:, position].int().argmax())
    response = position - (is_other_LP.shape[1] - len(difference_N))
    difference = float(difference_N[response]) if response >= 0 else 0.0
    return Routed(margin=float(margins_LP[layer, position]), difference=difference)
