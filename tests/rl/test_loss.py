"""The loss against numbers worked out on paper; the clip range is [0.8, 1.28] where nothing else is said."""

import math

import pytest
import torch
from torch.testing import assert_close

from nalar.rl.config import ObjectiveConfig
from nalar.rl.loss import divergence, objective, shares

CONFIGS = {
    "clip": ObjectiveConfig(),
    "unclipped": ObjectiveConfig(clip_low=None, clip_high=None),
    "dual": ObjectiveConfig(dual_clip=3.0),
    "cispo": ObjectiveConfig(name="cispo", clip_low=None, clip_high=1.0),
    "gspo": ObjectiveConfig(
        name="gspo", clip_low=0.05, clip_high=0.06, aggregation="sequence_mean"
    ),
    "r1": ObjectiveConfig(clip_low=10.0, clip_high=10.0),
}


def evaluate(ratios, advantages, config=CONFIGS["clip"], lengths=None):
    """The objective and the gradient of the sum of its losses in each token's log-probability."""
    old = torch.full((len(ratios),), -2.0, dtype=torch.float64)
    new = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    part = objective(
        new,
        old,
        torch.tensor(advantages, dtype=torch.float64),
        config,
        lengths_M=torch.tensor(lengths or [len(ratios)]),
    )
    part.loss_N.sum().backward()
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
def test_one_token_clipped(ratio, advantage, loss, gradient):
    part, grad = evaluate([ratio], [advantage])
    assert_close(part.loss_N.item(), loss, rtol=1e-7, atol=1e-12)
    assert_close(grad.item(), gradient, rtol=1e-7, atol=1e-12)
    is_held = gradient == 0 and advantage != 0
    assert bool(part.too_high_N) == (is_held and advantage > 0)
    assert bool(part.too_low_N) == (is_held and advantage < 0)


def test_a_rise_may_go_further_than_a_fall():
    """Clip-higher: 25% up still has a gradient, 25% down has none."""
    _, grad = evaluate([1.25, 0.75], [1.0, -1.0])
    assert grad[0] == pytest.approx(-1.25)
    assert grad[1] == 0.0


@pytest.mark.parametrize(
    ("config", "ratio", "advantage", "loss", "gradient"),
    [
        ("unclipped", 50.0, 1.0, -50.0, -50.0),
        ("unclipped", 0.01, -1.0, 0.01, 0.01),
        ("r1", 10.9, 1.0, -10.9, -10.9),  # 10 clips above a ratio of 11, and nothing below
        ("r1", 11.5, 1.0, -11.0, 0.0),
        ("r1", 1e-3, -1.0, 1e-3, 1e-3),
        ("dual", 2.9, -2.0, 5.8, 5.8),
        ("dual", 4.0, -2.0, 6.0, 0.0),  # risen by mistake, but so far that it is no longer believed
        ("dual", 1.5, 2.0, -2.56, 0.0),  # the plain clip still holds
        ("dual", 0.5, 2.0, -1.0, -1.0),
        # -min(r, 2) A log p with log p = -2 + log r; the gradient is -min(r, 2) A, whatever its sign
        ("cispo", 1.0, 1.0, 2.0, -1.0),
        ("cispo", 4.0, 1.0, -2 * (-2 + math.log(4)), -2.0),
        ("cispo", 4.0, -1.0, 2 * (-2 + math.log(4)), 2.0),
        ("cispo", 0.25, -1.0, 0.25 * (-2 - math.log(4)), 0.25),
    ],
)
def test_one_token_of_other_objectives(config, ratio, advantage, loss, gradient):
    part, grad = evaluate([ratio], [advantage], CONFIGS[config])
    assert_close(part.loss_N.item(), loss, rtol=1e-7, atol=1e-12)
    assert_close(grad.item(), gradient, rtol=1e-7, atol=1e-12)
    highest = {"unclipped": math.inf, "r1": 11.0, "dual": 3.0, "cispo": 2.0}[config]
    is_high = ratio > (1.28 if config == "dual" and advantage > 0 else highest)
    assert bool(part.too_high_N) == is_high
    assert not part.too_low_N


def test_gspo_has_one_ratio_a_response_the_geometric_mean():
    """Tokens 1.21 and 1: sqrt(1.21) = 1.1, above 1.06. Tokens 2, 0.25 and 2: 1. Lone 0.9: below 0.95, A < 0."""
    part, grad = evaluate(
        [1.21, 1.0, 2.0, 0.25, 2.0, 0.9],
        [1.0, 1.0, 3.0, 3.0, 3.0, -1.0],
        CONFIGS["gspo"],
        lengths=[2, 3, 1],
    )
    assert_close(part.loss_N.tolist(), [-1.06, -1.06, -3.0, -3.0, -3.0, 0.95])
    # one response of three tokens: each is a third of the ratio's exponent, and three tokens carry the loss
    assert_close(grad.tolist(), [0.0, 0.0, -3.0, -3.0, -3.0, 0.0])
    assert part.too_high_N.tolist() == [True, True, False, False, False, False]
    assert part.too_low_N.tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "cispo"])
def test_gradients_are_those_of_finite_differences(name):
    """Float64, central differences of 1e-6, at ratios on both sides of every bound and none on it."""
    config, lengths = CONFIGS[name], torch.tensor([3, 1, 4, 2])
    gen = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(10, generator=gen, dtype=torch.float64)
    new = old + 1.2 * torch.randn(10, generator=gen, dtype=torch.float64)
    advantages = torch.randn(4, generator=gen, dtype=torch.float64).repeat_interleave(lengths)
    share = shares(torch.ones(10, dtype=torch.float64), lengths, config) / 4

    def loss(logprobs):
        part = objective(logprobs, old, advantages, config, lengths_M=lengths)
        return (share * part.loss_N).sum()

    at = new.clone().requires_grad_()
    [grad] = torch.autograd.grad(loss(at), at)
    steps = 1e-6 * torch.eye(10, dtype=torch.float64)
    numeric = torch.stack([(loss(new + h) - loss(new - h)) / 2e-6 for h in steps])
    assert grad.abs().max() > 0.01
    assert_close(grad, numeric, rtol=1e-6, atol=1e-9)


def test_how_much_each_token_counts():
    """Responses of 2, 1 and 3 tokens; the last token is left out."""
    counted, lengths = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]), torch.tensor([2, 1, 3])
    for aggregation, expected in {
        "token_mean": [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        "fixed_length": [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        "sequence_mean": [0.5, 0.5, 1.0, 0.5, 0.5, 0.0],
    }.items():
        config = ObjectiveConfig(aggregation=aggregation)
        assert shares(counted, lengths, config).tolist() == expected


def test_a_response_of_which_nothing_counts_has_no_share():
    config = ObjectiveConfig(aggregation="sequence_mean")
    counted, lengths = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([2, 0, 1])
    assert shares(counted, lengths, config).tolist() == [0.0, 0.0, 1.0]


def test_divergence_on_paper():
    """The reference twice, half and just as likely: 2 - log 2 - 1, 0.5 + log 2 - 1 and 0; the slope in log p is 1 - r."""
    policy = torch.full((3,), -1.0, dtype=torch.float64, requires_grad=True)
    twice = math.log(2)
    found = divergence(policy, torch.tensor([-1 + twice, -1 - twice, -1.0], dtype=torch.float64))
    assert_close(found.tolist(), [1 - twice, twice - 0.5, 0.0])
    found.sum().backward()
    assert_close(policy.grad.tolist(), [-1.0, 0.5, 0.0])


def test_the_mean_divergence_of_drawn_tokens_is_the_kl():
    """Over all tokens at their probability: sum p k3 = sum p log(p / q), exactly."""
    gen = torch.Generator().manual_seed(1)
    p, q = torch.randn(2, 9, generator=gen, dtype=torch.float64).log_softmax(-1)
    assert_close((p.exp() * divergence(p, q)).sum(), (p.exp() * (p - q)).sum())
