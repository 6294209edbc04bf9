"""On-policy distillation: what a teacher says of the tokens that the policy drew (arXiv:2306.13649)."""

# N drawn tokens of a response

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nalar.rl.config import DistilConfig
from nalar.rl.lessons import Lesson


def taught(
    lessons: Sequence[Lesson], teacher: Iterable[Tensor], config: DistilConfig
) -> list[Lesson]:
    """The lessons with a gain for each token: coef * (teacher's log-probability - sampler's).

    teacher: fp32 [N] for each lesson, at the temperature of the draw. Under the policy that draws, the mean of the
    gain is -coef times the reverse KL of policy and teacher at that token, and a step along gain * grad(log p) is one
    down its gradient: the mean of grad(log p) is 0, so nothing else comes in.
    """
    found = []
    for lesson, teacher_N in zip(lessons, teacher, strict=True):
        drawn_N = torch.tensor(lesson.drawn_logprobs, device=teacher_N.device)
        gain_N = config.coef * (teacher_N - drawn_N)
        found.append(replace(lesson, teacher_N=teacher_N, gain_N=gain_N))
    return found
