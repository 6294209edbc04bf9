"""What of a rollout the loss will count, and how much."""

# G groups · S samples · N drawn tokens of a response

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, compress, pairwise

import torch
from torch import Tensor

from nalar.rl.advantage import advantages
from nalar.rl.config import RLConfig
from nalar.rl.rollout import Rollout


@dataclass(frozen=True)
class Lesson:
    """One response as the loss sees it. Tensors are fp32 [N], on the model's device."""

    rollout: Rollout
    advantage: float
    """Of the whole response, by its reward."""
    old_logprobs_N: Tensor | None = None
    """What the objective compares with. None: as they were drawn."""
    weights_N: Tensor | None = None
    """Corrects for another policy's having drawn the tokens; a token of weight 0 is in no term of the loss. None: 1."""
    num_left_out: int = 0
    """Tokens of weight 0."""
    reference_N: Tensor | None = None
    """Log-probabilities under the reference. None: there is no reference."""
    teacher_N: Tensor | None = None
    """Log-probabilities under the teacher. None: there is no teacher."""
    gain_N: Tensor | None = None
    """What the advantage of each token gains by what the teacher says of it. None: nothing."""

    @property
    def drawn_logprobs(self) -> list[float]:
        """Log-probabilities of the drawn tokens, as they were drawn."""
        response = self.rollout.response
        return list(compress(response.logprobs, response.drawn))

    @property
    def num_counted(self) -> int:
        """Tokens that are in the loss."""
        return self.rollout.response.num_drawn - self.num_left_out

    @property
    def length(self) -> int:
        """Tokens that the model sees of it: the last one predicts nothing."""
        return self.rollout.num_prompt_tokens + len(self.rollout.response) - 1


@dataclass(frozen=True)
class Minibatch:
    """What one update learns from."""

    lessons: tuple[Lesson, ...]
    num_groups: int
    """Of its share of the rollout, those that have nothing to teach included."""

    def denominator(self, config: RLConfig) -> float:
        """What its loss is divided by, whatever micro-batches it is cut into."""
        match config.objective.aggregation:
            case "token_mean":
                return sum(lesson.num_counted for lesson in self.lessons)
            case "sequence_mean":
                return sum(lesson.num_counted > 0 for lesson in self.lessons)
            case "fixed_length":
                return self.num_groups * config.group_size * config.max_tokens


def minibatches(groups: Sequence[Sequence[Rollout]], config: RLConfig) -> list[Minibatch]:
    """The lessons of a rollout, in shares of whole groups; rewards are compared before it is shared out."""
    each, count = lessons(groups, config), config.minibatches
    # As evenly as their number allows, which partial rollouts and refills change from step to step.
    cuts = [len(groups) * i // count for i in range(count + 1)]
    return [
        Minibatch(tuple(chain.from_iterable(each[start:end])), end - start)
        for start, end in pairwise(cuts)
    ]


def lessons(groups: Sequence[Sequence[Rollout]], config: RLConfig) -> list[list[Lesson]]:
    """What each group has to teach; an empty list where that is nothing.

    A group without any advantage is left out, unless another term of the loss, or a teacher, looks at it.
    """
    rewards_GS = torch.zeros(len(groups), max(map(len, groups), default=0))
    judged_GS = torch.zeros_like(rewards_GS, dtype=torch.bool)
    for g, group in enumerate(groups):
        rewards_GS[g, : len(group)] = torch.tensor([r.reward for r in group])
        judged_GS[g, : len(group)] = torch.tensor([r.score.error is None for r in group])
    found = advantages(rewards_GS, config.advantage, judged_GS).tolist()
    has_more = (
        config.kl.coef is not None
        or config.distil.teacher is not None
        or config.objective.entropy_coef is not None
    )
    return [
        [
            Lesson(rollout, advantage)
            for rollout, advantage in zip(
                group, row, strict=False
            )  # rows are as wide as the widest
            if rollout.response.num_drawn and not (config.mask_truncated and rollout.truncated)
        ]
        if has_more or any(row)
        else []
        for group, row in zip(groups, found, strict=True)
    ]
