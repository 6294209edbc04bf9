"""One update of the policy from one rollout."""

# G groups · S samples · T tokens of a micro-batch · N drawn tokens

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, count

import torch
from torch import Tensor

from nalar.kernels.documents import Documents, without_waiting
from nalar.kernels.logprobs import token_logprobs
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.rl.advantage import group_advantages
from nalar.rl.config import RLConfig
from nalar.rl.loss import policy_loss
from nalar.rl.rollout import Rollout
from nalar.train.step import StepMetrics, apply_gradients


@dataclass(frozen=True)
class PolicyBatch:
    """Sequences one after another, and which of their next tokens count."""

    ids_T: Tensor
    """int64: prompts and responses but for each response's last token, which has no next one."""
    documents: Documents
    where_N: Tensor
    """int64: the positions in ids_T that predict a token which the model drew."""
    targets_N: Tensor
    old_logprobs_N: Tensor
    advantages_N: Tensor


@dataclass(frozen=True)
class UpdateMetrics:
    """Means over the tokens of one update."""

    step: StepMetrics
    entropy: float
    clipped_frac: float
    log_ratio_rms: float
    """Root mean square of log(new/old): 0 on the first update after sampling, up to rounding."""
    tokens: int


def policy_batches(
    rollouts: Sequence[Rollout],
    advantages: Sequence[float],
    *,
    max_tokens: int,
    device: torch.device,
) -> Iterator[PolicyBatch]:
    """Sequences of like length together, at most max_tokens (one sequence at least)."""
    order = sorted(range(len(rollouts)), key=lambda i: _length(rollouts[i]))
    batch: list[int] = []
    tokens = 0
    for i in order:
        if batch and tokens + _length(rollouts[i]) > max_tokens:
            yield _join([rollouts[j] for j in batch], [advantages[j] for j in batch], device)
            batch, tokens = [], 0
        batch.append(i)
        tokens += _length(rollouts[i])
    if batch:
        yield _join([rollouts[j] for j in batch], [advantages[j] for j in batch], device)


def _length(rollout: Rollout) -> int:
    """Tokens that the model sees of it: the last one predicts nothing."""
    return len(rollout.prompt_ids) + len(rollout.response) - 1


def _join(
    rollouts: Sequence[Rollout], advantages: Sequence[float], device: torch.device
) -> PolicyBatch:
    ids: list[int] = []
    where: list[int] = []
    targets: list[int] = []
    old: list[float] = []
    advantage: list[float] = []
    for rollout, a in zip(rollouts, advantages, strict=True):
        response = rollout.response
        first = len(ids) + len(rollout.prompt_ids) - 1
        where.extend(first + i for i in compress(count(), response.drawn))
        ids.extend(rollout.prompt_ids + response.token_ids[:-1])
        targets.extend(compress(response.token_ids, response.drawn))
        old.extend(compress(response.logprobs, response.drawn))
        advantage.extend([a] * response.num_drawn)
    return PolicyBatch(
        ids_T=without_waiting(torch.tensor(ids), device),
        documents=Documents.of([_length(r) for r in rollouts], device=device),
        where_N=without_waiting(torch.tensor(where), device),
        targets_N=without_waiting(torch.tensor(targets), device),
        old_logprobs_N=without_waiting(torch.tensor(old), device),
        advantages_N=without_waiting(torch.tensor(advantage), device),
    )


def trainer_logprobs(model: Transformer, batch: PolicyBatch) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Log-probability and entropy [N] of each drawn token by the training forward, and expert loads."""
    hidden = model(batch.ids_T, batch.documents)
    states_ND = hidden.states.index_select(0, batch.where_N)
    logprobs_N, entropy_N = token_logprobs(
        states_ND,
        model.head_weight,
        batch.targets_N,
        logits_scaling=model.config.logits_scaling,
    )
    return logprobs_N, entropy_N, list(hidden.loads)


def useful(
    groups: Sequence[Sequence[Rollout]], config: RLConfig
) -> tuple[list[Rollout], list[float]]:
    """The samples of all groups that can teach, with their advantages: a group of equal rewards cannot."""
    rollouts: list[Rollout] = []
    advantages: list[float] = []
    for group in groups:
        rewards_1S = torch.tensor([[r.reward for r in group]], dtype=torch.float32)
        if (rewards_1S == rewards_1S[0, 0]).all():
            continue
        each = group_advantages(
            rewards_1S, divide_by_std=config.advantage_std, eps=config.advantage_eps
        )[0].tolist()
        for rollout, advantage in zip(group, each, strict=True):
            if not (config.mask_truncated and rollout.truncated):
                rollouts.append(rollout)
                advantages.append(advantage)
    return rollouts, advantages


def update(
    model: Transformer,
    optimizer: MuonClip,
    groups: Sequence[Sequence[Rollout]],
    config: RLConfig,
    *,
    lr_factor: float,
) -> UpdateMetrics | None:
    """One optimizer step on whole groups; None where no group has anything to teach."""
    rollouts, advantages = useful(groups, config)
    if not rollouts:
        return None
    tokens = sum(r.response.num_drawn for r in rollouts)
    device = model.head_weight.device
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    loads: list[Tensor] = []
    optimizer.zero_grad()
    for batch in policy_batches(
        rollouts, advantages, max_tokens=config.micro_batch_tokens, device=device
    ):
        logprobs_N, entropy_N, batch_loads = trainer_logprobs(model, batch)
        part = policy_loss(
            logprobs_N,
            batch.old_logprobs_N,
            batch.advantages_N,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            denominator=tokens,
        )
        part.loss.backward()
        loads = [a + b for a, b in zip(loads, batch_loads, strict=True)] if loads else batch_loads
        sums = [part.loss.detach(), entropy_N.sum(), part.clipped, part.squared_log_ratio]
        totals += torch.stack([s.double() for s in sums])
    outcome = apply_gradients(
        model,
        optimizer,
        loss=totals[0],
        loads=loads,
        max_logits=(),
        lr_factor=lr_factor,
        balance_speed=config.balance_speed,
    )
    _, entropy, clipped, squared = totals.tolist()
    return UpdateMetrics(
        outcome.metrics(), entropy / tokens, clipped / tokens, (squared / tokens) ** 0.5, tokens
    )
