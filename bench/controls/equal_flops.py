"""What else the FLOPs of RL could have bought: more pretraining, or tuning on the model's own correct samples."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TypeVar

import torch

from controls.finished import Finished
from controls.results import MorePretraining, Round, Tuning
from nalar.data.packing import Packed, Packing
from nalar.data.tokenizer import Tokenizer
from nalar.engine.engine import Engine
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.optim.schedule import lr_factor
from nalar.pipeline.evaluation import engine_for
from nalar.pipeline.tools import environments
from nalar.plan.model import sampling_flops, sequence_flops
from nalar.rl.batches import policy_batches, trainer_logprobs
from nalar.rl.collector import collect
from nalar.rl.config import RLConfig
from nalar.rl.lessons import Lesson
from nalar.rl.rollout import Rollout, draw_problems
from nalar.run import Meter
from nalar.train.pretrain import Progress, pretrain_slice
from nalar.train.step import apply_gradients

ROUNDS = 8
"""Of sampling and tuning, the budget split evenly between them."""
EPOCHS = 3
"""Over the kept samples of a round, at most."""
KEPT_PER_PROBLEM = 8
"""Distinct correct samples of a problem that are kept, so that easy problems do not drown the others."""
TUNING_BATCH = 64
"""Sequences of an optimizer step."""

T = TypeVar("T")


def more_pretraining(finished: Finished) -> MorePretraining:
    """Go on from the base: same data stream, same optimizer state, one whole schedule more: warm-up, plateau, decay."""
    config = finished.config
    with Meter() as meter:
        model, tokenizer, first = finished.base()
        optimizer = finished.pretraining_optimizer(model)
        batches = Packing(tokenizer, config.corpus, config.packing, config.seed)
        sampled = [_flops(model.config, batches.batch(first + i).lengths) for i in range(50)]
        steps = whole_steps(finished.rl_flops, fmean(sampled))
        tokens = steps * batches.tokens_per_step
        spent = 0.0

        def on_step(progress: Progress) -> None:
            nonlocal spent
            spent += _flops(model.config, progress.lengths)

        pretrain_slice(
            model,
            optimizer,
            LaterBatches(batches, first),
            config.pretrain.model_copy(update={"slice_tokens": tokens, "max_slices": 1}),
            first_step=0,
            on_step=on_step,
            should_stop=lambda: False,
        )
        tasks = finished.measure(model, tokenizer)
    return MorePretraining(
        tasks=tasks,
        tokens=tokens,
        flops=spent,
        flops_of_rl=spent / finished.rl_flops,
        wall_s=meter.total.wall_s,
        steps=steps,
        from_step=first,
    )


def _flops(model: ModelConfig, lengths: Sequence[int]) -> float:
    return sum(sequence_flops(model, n, backward=True) for n in lengths)


def whole_steps(budget_flops: float, step_flops: float) -> int:
    """The number of steps that comes nearest to a budget, at least one."""
    return max(1, round(budget_flops / step_flops))


@dataclass(frozen=True)
class LaterBatches:
    """The data stream from a step on."""

    batches: Packing
    first: int

    @property
    def tokens_per_step(self) -> int:
        return self.batches.tokens_per_step

    def batch(self, step: int) -> Packed:
        return self.batches.batch(self.first + step)


def rejection_sampling_sft(finished: Finished) -> Tuning:
    """Rounds of: sample train problems from the model as it is, keep what is correct, tune on it."""
    config = finished.config
    with Meter() as meter:
        model, tokenizer, _ = finished.base()
        tuner = Tuner(
            model,
            MuonClip(model.named_parameters(), config.rl.optim),
            config.rl,
            budget=finished.rl_flops,
        )
        engine = engine_for(model, config)
        sampler = Sampler(finished, engine, tokenizer)
        rounds = []
        for i in range(ROUNDS):
            limit = finished.rl_flops * (i + 1) / ROUNDS
            rounds.append(_round(tuner, sampler, limit))
        tasks = finished.measure(model, tokenizer)
    return Tuning(
        tasks=tasks,
        tokens=tuner.tokens,
        flops=tuner.spent,
        flops_of_rl=tuner.spent / finished.rl_flops,
        wall_s=meter.total.wall_s,
        rounds=rounds,
    )


@dataclass
class Sampler:
    """The prompts that RL saw, step by step."""

    finished: Finished
    engine: Engine
    tokenizer: Tokenizer
    step: int = 0

    def next(self) -> list[list[Rollout]]:
        config = self.finished.config
        tasks = self.finished.rl_tasks
        problems = draw_problems(tasks, config.rl.prompts_per_step, config.seed, self.step)
        seed = config.seed * 100_003 + self.step
        self.step += 1
        return collect(
            *(self.engine, self.tokenizer, tasks, problems, config.rl),
            seed=seed,
            make_environment=environments(config.tools, self.tokenizer),
        )


@dataclass
class Tuner:
    """A model being tuned within a budget of FLOPs."""

    model: Transformer
    optimizer: MuonClip
    config: RLConfig
    budget: float
    spent: float = 0.0
    tokens: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)

    def count_sampling(self, groups: Sequence[Sequence[Rollout]]) -> None:
        for group in groups:
            lengths = [len(r.response.token_ids) for r in group]
            self.tokens += sum(lengths)
            self.spent += sampling_flops(self.model.config, group[0].num_prompt_tokens, lengths)

    def tune(self, batch: Sequence[Rollout]) -> None:
        """One optimizer step on the mean loss over what the model drew of responses."""
        total = sum(r.response.num_drawn for r in batch)
        loss, loads = 0.0, list[torch.Tensor]()
        self.model.train()
        self.optimizer.zero_grad()
        for part in policy_batches(
            [Lesson(r, 1.0) for r in batch],
            max_tokens=self.config.micro_batch_tokens,
            device=self.model.head_weight.device,
        ):
            logprobs_N, _, part_loads = trainer_logprobs(self.model, part)
            part_loss = -logprobs_N.sum() / total
            part_loss.backward()
            loss += float(part_loss.detach())
            loads = [a + b for a, b in zip(loads, part_loads, strict=True)] if loads else part_loads
        apply_gradients(
            self.model,
            self.optimizer,
            loss=torch.tensor(loss),
            loads=loads,
            max_logits=(),
            lr_factor=self._lr_factor(),
            balance_speed=self.config.balance_speed,
        )
        self.steps += 1
        self.tokens += total
        self.spent += sum(training_flops(self.model.config, r) for r in batch)
        self.losses.append(loss)

    def _lr_factor(self) -> float:
        """RL's schedule: its warm-up in steps, its plateau and decay over the budget."""
        config = self.config.schedule
        of_rl = self.config.steps * self.config.minibatches
        at = min(int(of_rl * self.spent / self.budget), of_rl - 1)
        warm = (self.steps + 1) / config.warmup_steps if config.warmup_steps else 1.0
        return min(1.0, warm) * lr_factor(config, max(at, config.warmup_steps), of_rl)


def training_flops(model: ModelConfig, rollout: Rollout) -> float:
    """Forward and backward over a prompt and its response, as RL counts them."""
    length = rollout.num_prompt_tokens + len(rollout.response.token_ids) - 1
    return sequence_flops(model, length, backward=True)


def _round(tuner: Tuner, sampler: Sampler, limit: float) -> Round:
    """Sample until what was kept, trained on for all epochs, fills the budget up to `limit`; then train."""
    model = tuner.model.config
    kept: list[Rollout] = []
    cost = sampled = correct = 0.0
    while tuner.spent + EPOCHS * cost < limit:
        groups = sampler.next()
        tuner.count_sampling(groups)
        new = keep(groups)
        kept += new
        cost += sum(training_flops(model, r) for r in new)
        sampled += sum(map(len, groups))
        correct += sum(is_correct(r) for group in groups for r in group)
    costs = {id(r): training_flops(model, r) for r in kept}
    order = epochs(kept, EPOCHS, seed=tuner.steps)
    chosen = within(((r, costs[id(r)]) for r in order), limit - tuner.spent)
    first = tuner.steps
    for start in range(0, len(chosen), TUNING_BATCH):
        tuner.tune(chosen[start : start + TUNING_BATCH])
    last_epoch = tuner.losses[first:][-max(1, len(kept) // TUNING_BATCH) :]
    return Round(
        sampled=int(sampled),
        correct=int(correct),
        kept=len(kept),
        epochs=len(chosen) / len(kept) if kept else 0.0,
        optimizer_steps=tuner.steps - first,
        loss=fmean(last_epoch) if last_epoch else None,
    )


def is_correct(rollout: Rollout) -> bool:
    return rollout.score.correct and rollout.parsed.well_formed


def keep(groups: Iterable[Sequence[Rollout]]) -> list[Rollout]:
    """The first distinct correct samples of each problem."""
    kept: list[Rollout] = []
    for group in groups:
        distinct = {r.response.token_ids: r for r in group if is_correct(r)}
        kept += list(distinct.values())[:KEPT_PER_PROBLEM]
    return kept


def epochs(items: Sequence[T], count: int, *, seed: int) -> Iterator[T]:
    """Every item `count` times, shuffled anew each time."""
    rng = random.Random(seed)
    for _ in range(count):
        yield from rng.sample(items, len(items))


def within(costed: Iterable[tuple[T, float]], budget: float) -> list[T]:
    """Items from the front until the budget is used: the one that passes it stays if that comes nearer."""
    chosen: list[T] = []
    for item, cost in costed:
        if budget < cost / 2:
            break
        chosen.append(item)
        budget -= cost
    return chosen
