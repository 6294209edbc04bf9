"""How much better than others a response did."""

# G groups · S samples of a group · J judged samples

from collections.abc import Callable

import torch
from torch import Tensor

from nalar.rl.config import AdvantageConfig


def advantages(
    rewards_GS: Tensor, config: AdvantageConfig, judged_GS: Tensor | None = None
) -> Tensor:
    """What each reward is worth beside the others of its group or of the whole rollout; fp32 [G, S].

    judged_GS: bool, the samples that have a verdict. Others get 0 and nobody is compared with them. None: all have.
    Rewards that are all equal where they are compared get exactly 0. Deviations are those of a whole population.
    """
    if judged_GS is None:
        judged_GS = torch.ones_like(rewards_GS, dtype=torch.bool)
    found_GS = torch.zeros_like(rewards_GS)
    if config.over_groups:
        found_GS[judged_GS] = _apart(rewards_GS[judged_GS], _standardised, config.eps)
        return found_GS
    within = _WITHIN[config.name]
    for found_S, rewards_S, judged_S in zip(found_GS, rewards_GS, judged_GS, strict=True):
        found_S[judged_S] = _apart(rewards_S[judged_S], within, config.eps)
    if config.name == "reinforce_pp_baseline" and judged_GS.any():
        found_GS /= found_GS[judged_GS].square().mean().sqrt() + config.eps
    return found_GS


def _apart(rewards_J: Tensor, compare: Callable[[Tensor, float], Tensor], eps: float) -> Tensor:
    """Zeros where there is nothing to compare: the mean of equals may be none of them."""
    if not len(rewards_J) or bool((rewards_J == rewards_J[0]).all()):
        return torch.zeros_like(rewards_J)
    return compare(rewards_J, eps)


def _standardised(rewards_J: Tensor, eps: float) -> Tensor:
    return _centred(rewards_J, eps) / (rewards_J.std(correction=0) + eps)


def _centred(rewards_J: Tensor, eps: float) -> Tensor:
    return rewards_J - rewards_J.mean()


def _less_the_others(rewards_J: Tensor, eps: float) -> Tensor:
    return rewards_J - (rewards_J.sum() - rewards_J) / (len(rewards_J) - 1)


_WITHIN: dict[str, Callable[[Tensor, float], Tensor]] = {
    "grpo": _standardised,
    "dr_grpo": _centred,
    "rloo": _less_the_others,
    "reinforce_pp_baseline": _centred,
}
