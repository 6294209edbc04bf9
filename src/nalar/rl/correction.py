"""What is known and done about tokens that another policy drew than the one that is trained."""

# N drawn tokens of a response

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nalar.rl.config import CorrectionConfig
from nalar.rl.lessons import Lesson
from nalar.rl.loss import divergence


@dataclass(frozen=True)
class Mismatch:
    """Trainer against sampler on the tokens of a rollout, before its first update."""

    kl: float
    """Of the sampler from the trainer, nats a token, by k3: never negative."""
    log_ratio_rms: float
    mean_weight: float | None = None
    """Of the importance weights, before they are held or left out: 1 where the two agree. None: there are none."""
    held_frac: float | None = None
    """Tokens whose weight was held below the cap, or that were left out."""


def importance_weights(ratios_N: Tensor, config: CorrectionConfig) -> tuple[Tensor, Tensor]:
    """What each token counts, fp32 [N], and which were held or left out, bool [N].

    ratios_N: trainer's probability over the sampler's, of a token or of the whole response at each of its tokens.
    """
    held_N = ratios_N > config.cap
    if config.weights == "truncate":
        return ratios_N.clamp(max=config.cap), held_N
    if config.floor is not None:
        held_N = held_N | (ratios_N < config.floor)
    return ratios_N.masked_fill(held_N, 0.0), held_N


def correct(
    lessons: Sequence[Lesson], trainer: Sequence[Tensor], config: CorrectionConfig
) -> tuple[list[Lesson], Mismatch]:
    """The lessons with the trainer's log-probabilities to compare with, and weights where they are asked for.

    trainer: of each lesson's drawn tokens, before the first update. At least one lesson.
    """
    trainer_N = torch.cat(list(trainer))
    sampler_N = trainer_N.new_tensor([x for lesson in lessons for x in lesson.drawn_logprobs])
    counts = [len(own_N) for own_N in trainer]
    log_ratio_N = trainer_N - sampler_N
    figures = [divergence(sampler_N, trainer_N).mean(), log_ratio_N.square().mean()]
    taught = [
        replace(lesson, old_logprobs_N=own_N)
        for lesson, own_N in zip(lessons, trainer, strict=True)
    ]
    if config.weights is None:
        kl, square = torch.stack(figures).tolist()
        return taught, Mismatch(kl, square**0.5)
    if config.level == "sequence":
        whole = [x_N.sum().expand_as(x_N) for x_N in log_ratio_N.split(counts)]
        log_ratio_N = torch.cat(whole)
    ratios_N = log_ratio_N.exp()
    weights_N, held_N = importance_weights(ratios_N, config)
    each = weights_N.split(counts)
    figures += [ratios_N.mean(), held_N.float().mean(), *((own_N == 0).sum() for own_N in each)]
    kl, square, mean, held, *left_out = torch.stack([x.float() for x in figures]).tolist()
    weighted = [
        replace(lesson, weights_N=own_N, num_left_out=int(count))
        for lesson, own_N, count in zip(taught, each, left_out, strict=True)
    ]
    return weighted, Mismatch(kl, square**0.5, mean, held)
