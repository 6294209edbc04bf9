"""How much better than its group a response did."""

# G groups · S samples of a group

from torch import Tensor


def group_advantages(rewards_GS: Tensor, *, divide_by_std: bool, eps: float) -> Tensor:
    """Rewards minus their group's mean, divided by its standard deviation + eps where asked; fp32 [G, S].

    The deviation is that of the group as a whole population. A group of equal rewards gets zeros.
    """
    centred_GS = rewards_GS - rewards_GS.mean(1, keepdim=True)
    if not divide_by_std:
        return centred_GS
    return centred_GS / (rewards_GS.std(1, keepdim=True, correction=0) + eps)
