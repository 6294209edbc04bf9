"""The clipped objective against numbers worked out on paper, with clip range [0.8, 1.28]."""

import math

import pytest
import torch
from torch.testing import assert_close

from nalar.rl.loss import policy_loss


def evaluate(ratios, advantages, *, denominator=1.0):
    """The loss and its gradient with respect to each token's log-probability."""
    old = torch.full((len(ratios),), -2.0, dtype=torch.float64)
    new = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    part = policy_loss(
        new,
        old,
        torch.tensor(advantages, dtype=torch.float64),
        clip_low=0.2,
        clip_high=0.28,
        denominator=denominator,
    )
    part.loss.backward()
    return part, new.grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on policy: the plain policy gradient
        (1.0, -2.0, 2.0, 2.0),
        (1.1, 2.0, -2.2, -2.2),  # inside the range: -r A, and d/dlogp of it is the same
        (0.9, -2.0, 1.8, 1.8),
        (1.28 - 1e-9, 1.0, -1.28, -1.28),  # the upper edge belongs to it
        (1.5, 2.0, -2.56, 0.0),  # risen enough: held at 1.28 x 2
        (0.5, -2.0, 1.6, 0.0),  # fallen enough: held at 0.8 x -2
        (0.5, 2.0, -1.0, -1.0),  # fallen by mistake: pulled back, no clip
        (1.5, -2.0, 3.0, 3.0),  # risen by mistake: pulled back, no clip
        (3.0, 0.0, 0.0, 0.0),
    ],
)
def test_one_token(ratio, advantage, loss, gradient):
    part, grad = evaluate([ratio], [advantage])
    assert_close(part.loss.item(), loss, rtol=1e-7, atol=1e-12)
    assert_close(grad.item(), gradient, rtol=1e-7, atol=1e-12)
    assert int(part.clipped) == (gradient == 0 and advantage != 0)


def test_a_rise_may_go_further_than_a_fall():
    """Clip-higher: 25% up still has a gradient, 25% down has none."""
    _, grad = evaluate([1.25, 0.75], [1.0, -1.0])
    assert grad[0] == pytest.approx(-1.25)
    assert grad[1] == 0.0


def test_tokens_are_summed_and_divided_by_the_given_number():
    part, grad = evaluate([1.0, 1.1, 1.5, 0.5], [1.0, 1.0, 1.0, -1.0], denominator=8.0)
    assert_close(part.loss.item(), (-1.0 - 1.1 - 1.28 + 0.8) / 8)
    assert_close(grad, torch.tensor([-1.0, -1.1, 0.0, 0.0], dtype=torch.float64) / 8)
    assert int(part.clipped) == 2
    expected = sum(math.log(r) ** 2 for r in (1.0, 1.1, 1.5, 0.5))
    assert part.squared_log_ratio.item() == pytest.approx(expected)


def test_parts_with_the_denominator_of_the_whole_add_up_to_it():
    ratios, advantages = [0.9, 1.5, 1.2, 0.3, 1.0], [1.0, 2.0, -1.0, -2.0, 0.5]
    whole, whole_grad = evaluate(ratios, advantages, denominator=5.0)
    one, one_grad = evaluate(ratios[:2], advantages[:2], denominator=5.0)
    two, two_grad = evaluate(ratios[2:], advantages[2:], denominator=5.0)
    assert_close(whole.loss, one.loss + two.loss, rtol=1e-14, atol=0)
    assert_close(whole_grad, torch.cat([one_grad, two_grad]), rtol=1e-14, atol=0)
    assert whole.clipped == one.clipped + two.clipped
