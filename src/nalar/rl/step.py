"""Updates of the policy from one rollout."""

# N drawn tokens of a micro-batch

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.rl.batches import PolicyBatch, drawn_logprobs, policy_batches, trainer_logprobs
from nalar.rl.config import RLConfig
from nalar.rl.correction import Mismatch, correct
from nalar.rl.lessons import Minibatch, minibatches
from nalar.rl.loss import divergence, objective, shares
from nalar.rl.reference import Reference
from nalar.rl.rollout import Rollout
from nalar.rl.teacher import taught
from nalar.train.step import StepMetrics, apply_gradients


@dataclass(frozen=True)
class UpdateMetrics:
    """What one update reports. Shares and means are over the tokens in its loss."""

    step: StepMetrics
    terms: Mapping[str, float]
    """Each term of the loss, weighted as it is added up: policy, and kl and entropy where they are on."""
    entropy: float
    clipped_high_frac: float
    """Tokens held back because their ratio is too high."""
    clipped_low_frac: float
    log_ratio_rms: float
    """Root mean square of log(new/old): 0 on the first update after sampling, up to rounding."""
    kl: float | None
    """From the reference, nats a token, by k3. None: there is no reference."""
    teacher_kl: float | None
    """The same from the teacher. None: there is no teacher."""
    tokens: int
    """Tokens that should be in the loss, by the lessons."""
    counted_tokens: int
    """Those that were, by the batches: anything but `tokens` is a wrong mask."""
    denominator: float
    share_sum: float
    """What all tokens together count. 1 where the loss is a mean; `tokens / denominator` for fixed_length."""

    @property
    def clipped_frac(self) -> float:
        return self.clipped_high_frac + self.clipped_low_frac


def teach(
    model: Transformer,
    groups: Sequence[Sequence[Rollout]],
    config: RLConfig,
    reference: Reference | None = None,
    teacher: Transformer | None = None,
) -> tuple[list[Minibatch], Mismatch | None]:
    """What a rollout has to teach, by update, with all that is computed before the first one.

    reference: needed where `config.kl` has a coefficient; teacher: where `config.distil` names one. The mismatch is
    None where the trainer's log-probabilities
    were not asked for, or there is nothing to teach.
    """
    shares = minibatches(groups, config)
    flat = [lesson for share in shares for lesson in share.lessons]
    mismatch = None
    if config.correction.old_logprobs == "trainer" and flat:
        flat, mismatch = correct(flat, _logprobs(model, shares, config), config.correction)
    if config.kl.coef is not None:
        if reference is None:
            raise ValueError("rl.kl.coef is set, and there is no reference")
        found = _logprobs(reference.model, shares, config)
        flat = [replace(one, reference_N=x_N) for one, x_N in zip(flat, found, strict=True)]
    if config.distil.teacher is not None:
        if teacher is None:
            raise ValueError("rl.distil.teacher is set, and there is no teacher")
        flat = taught(flat, _logprobs(teacher, shares, config), config.distil)
    rest = iter(flat)
    return [
        replace(share, lessons=tuple(islice(rest, len(share.lessons)))) for share in shares
    ], mismatch


def _logprobs(model: Transformer, shares: Sequence[Minibatch], config: RLConfig) -> list[Tensor]:
    """Of the drawn tokens of all lessons, in the very batches of the updates.

    So the first update has ratios of 1 to the bit, where a forward pass does not depend on who wants a gradient.
    """
    return [x_N for share in shares for x_N in drawn_logprobs(model, share.lessons, config)]


def update(
    model: Transformer,
    optimizer: MuonClip,
    minibatch: Minibatch,
    config: RLConfig,
    *,
    lr_factor: float,
) -> UpdateMetrics | None:
    """One optimizer step; None where nothing is in the loss."""
    lessons = [lesson for lesson in minibatch.lessons if lesson.num_counted]
    if not lessons:
        return None
    denominator, tokens = minibatch.denominator(config), sum(one.num_counted for one in lessons)
    totals: dict[str, Tensor] = {}
    loads: list[Tensor] = []
    optimizer.zero_grad()
    for batch in policy_batches(
        lessons, max_tokens=config.micro_batch_tokens, device=model.head_weight.device
    ):
        part = _part(model, batch, config, denominator)
        part.loss.backward()
        loads = [a + b for a, b in zip(loads, part.loads, strict=True)] if loads else part.loads
        totals = {name: totals.get(name, 0) + x.double() for name, x in part.sums.items()}
    outcome = apply_gradients(
        model,
        optimizer,
        loss=totals["loss"],
        loads=loads,
        max_logits=(),
        lr_factor=lr_factor,
        balance_speed=config.balance_speed,
    )
    sums = dict(zip(totals, torch.stack(list(totals.values())).tolist(), strict=True))
    return UpdateMetrics(
        step=outcome.metrics(),
        terms={name: sums[name] for name in ("policy", "kl", "entropy") if name in sums},
        entropy=sums["entropy_N"] / tokens,
        clipped_high_frac=sums["too_high_N"] / tokens,
        clipped_low_frac=sums["too_low_N"] / tokens,
        log_ratio_rms=(sums["squared_N"] / tokens) ** 0.5,
        kl=sums["kl_N"] / tokens if "kl_N" in sums else None,
        teacher_kl=sums["teacher_kl_N"] / tokens if "teacher_kl_N" in sums else None,
        tokens=tokens,
        counted_tokens=round(sums["counted_N"]),
        denominator=denominator,
        share_sum=sums["share_N"],
    )


@dataclass(frozen=True)
class _Part:
    """A micro-batch's part of the loss, and sums over its tokens of what is reported."""

    loss: Tensor
    sums: dict[str, Tensor]
    loads: list[Tensor]


def _part(model: Transformer, batch: PolicyBatch, config: RLConfig, denominator: float) -> _Part:
    coef = config.objective.entropy_coef
    logprobs_N, entropy_N, loads = trainer_logprobs(
        model, batch, temperature=config.temperature, entropy_learns=coef is not None
    )
    policy = objective(
        logprobs_N,
        batch.old_logprobs_N,
        batch.advantages_N,
        config.objective,
        lengths_M=batch.lengths_M,
    )
    weights_N = batch.weights_N
    terms = {"policy": policy.loss_N if weights_N is None else policy.loss_N * weights_N}
    watched = {
        "entropy_N": entropy_N,
        "too_high_N": policy.too_high_N,
        "too_low_N": policy.too_low_N,
        "squared_N": (logprobs_N - batch.old_logprobs_N).square(),
    }
    if config.kl.coef is not None and batch.reference_N is not None:
        watched["kl_N"] = divergence(logprobs_N, batch.reference_N)
        terms["kl"] = config.kl.coef * watched["kl_N"]
    if batch.teacher_N is not None:
        watched["teacher_kl_N"] = divergence(logprobs_N, batch.teacher_N)
    if coef is not None:
        terms["entropy"] = -coef * entropy_N
    counted_N = batch.counted_N
    share_N = shares(counted_N, batch.lengths_M, config.objective) / denominator
    summed = {name: (share_N * term_N).sum() for name, term_N in terms.items()}
    loss = torch.stack(list(summed.values())).sum()
    sums = {name: (x_N.detach() * counted_N).sum() for name, x_N in watched.items()}
    sums |= {name: term.detach() for name, term in summed.items()}
    sums |= {"loss": loss.detach(), "counted_N": counted_N.sum(), "share_N": share_N.sum()}
    return _Part(loss, sums, loads)
