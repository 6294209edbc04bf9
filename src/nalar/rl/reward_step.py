"""One optimizer step of a reward model, and the loop over them."""

# S sequences of a micro-batch · M judgements of it

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.optim.schedule import lr_factor
from nalar.rl.reward_model import Ids, last_scores
from nalar.train.config import PretrainConfig
from nalar.train.pretrain import Progress
from nalar.train.step import StepOutcome, apply_gradients

Side = Literal["better", "worse"]


@dataclass(frozen=True)
class Example:
    """What a judgement reads: a sequence that should score higher than another one, or than 0."""

    better: Ids | None
    """None: 0."""
    worse: Ids | None
    better_first: bool = True
    """Which lies first in a batch."""

    @property
    def sides(self) -> list[tuple[Side, Ids]]:
        """Those that are there, in the order of a batch."""
        pair: list[tuple[Side, Ids | None]] = [("better", self.better), ("worse", self.worse)]
        order = pair if self.better_first else pair[::-1]
        return [(side, ids) for side, ids in order if ids is not None]

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for _, ids in self.sides]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Epochs:
    """All examples once an epoch, in an order that seed and epoch decide, so many a step; a step needs no more than its
    number."""

    examples: Sequence[Example]
    per_step: int
    seed: int

    @property
    def steps(self) -> int:
        """Of an epoch. The last one has what is left."""
        return -(-len(self.examples) // self.per_step)

    @property
    def tokens(self) -> int:
        """Of an epoch."""
        return sum(example.tokens for example in self.examples)

    def batch(self, step: int) -> list[Example]:
        epoch, place = divmod(step, self.steps)
        order = list(range(len(self.examples)))
        random.Random(f"{self.seed} epoch {epoch}").shuffle(order)
        chosen = order[place * self.per_step : (place + 1) * self.per_step]
        return [self.examples[i] for i in chosen]


def micro_batches(
    examples: Sequence[Example], max_tokens: int | None
) -> Iterator[Sequence[Example]]:
    """Whole judgements, in order, at most `max_tokens` (one judgement at least). None: all at once."""
    batch: list[Example] = []
    for example in examples:
        if max_tokens and batch and sum(e.tokens for e in batch) + example.tokens > max_tokens:
            yield batch
            batch = []
        batch.append(example)
    yield batch


def margins(model: Transformer, examples: Sequence[Example]) -> tuple[Tensor, Sequence[Tensor]]:
    """fp32 [M]: by how much the better side scores higher than the worse one; and the loads of experts."""
    sequences: list[Ids] = []
    places: dict[Side, list[int]] = {"better": [], "worse": []}
    for example in examples:
        there = dict(example.sides)
        for side in places:
            place = len(sequences) + list(there).index(side) if side in there else -1
            places[side].append(place)  # the last place of all is what None scores
        sequences += there.values()
    scores_S, hidden = last_scores(model, sequences)
    padded = torch.cat([scores_S, scores_S.new_zeros(1)])
    better_M, worse_M = (
        padded[torch.tensor(place, device=padded.device)] for place in places.values()
    )
    return better_M - worse_M, hidden.loads


def reward_step(
    model: Transformer,
    optimizer: MuonClip,
    examples: Sequence[Example],
    *,
    lr_factor: float,
    micro_batch_tokens: int | None = None,
) -> StepOutcome:
    """Mean over the step's judgements of -log sigmoid(better - worse), one update.

    Of pairs that is the Bradley-Terry model's loss, of labels, whose other side is 0, logistic regression. The divisor
    is the step's, so it does not depend on micro-batches.
    """
    optimizer.zero_grad()
    device = model.head_weight.device
    loss, right = torch.zeros((), device=device), torch.zeros((), device=device)
    loads: list[Tensor] = []
    for part in micro_batches(examples, micro_batch_tokens):
        margins_M, new = margins(model, part)
        share = -F.logsigmoid(margins_M).sum() / len(examples)
        share.backward()
        loss, right = loss + share.detach(), right + (margins_M > 0).sum()
        loads = [a + b for a, b in zip(loads, new, strict=True)] if loads else list(new)
    outcome = apply_gradients(
        model,
        optimizer,
        loss=loss,
        loads=loads,
        max_logits=None,
        lr_factor=lr_factor,
        balance_speed=0.0,
        judge_loss=True,
    )
    return replace(outcome, right_frac=right / len(examples))


def train_epoch(
    model: Transformer,
    optimizer: MuonClip,
    epochs: Epochs,
    config: PretrainConfig,
    *,
    first_step: int,
    on_step: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> int:
    """From `first_step` to the end of its epoch, or until told to stop; returns steps done in all."""
    step, epoch = first_step, first_step // epochs.steps
    model.train()
    model.recompute = config.recompute
    while step < (epoch + 1) * epochs.steps and not should_stop():
        examples = epochs.batch(step)
        outcome = reward_step(
            model,
            optimizer,
            examples,
            lr_factor=lr_factor(config.schedule, step, epochs.steps * config.max_slices),
            micro_batch_tokens=config.micro_batch_tokens,
        )
        step += 1
        lengths = tuple(length for example in examples for length in example.lengths)
        on_step(Progress(step, sum(lengths), epoch, lengths, outcome))
    return step
