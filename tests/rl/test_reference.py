"""The reference stands still, follows when it is time, and comes back as it was."""

import pytest
import torch

from nalar.config import UserError
from nalar.rl.config import KLConfig
from nalar.rl.reference import Reference


@torch.no_grad()
def move(model):
    for p in model.parameters():
        p.add_(0.01)
    for router in model.routers():
        router.e_score_correction_bias.add_(0.5)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def test_it_stands_still_until_a_refresh_is_due(toy_model, rl_config):
    config = rl_config(kl=KLConfig(coef=0.1, refresh_every_steps=3))
    reference, followed = Reference(toy_model), []
    for step in range(8):
        reference.follow(toy_model, step, config)
        if same(reference.state(), toy_model.state_dict()):
            followed.append(step)
        move(toy_model)
    assert followed == [0, 3, 6]
    assert not any(p.requires_grad for p in reference.model.parameters())


def test_without_a_refresh_it_stays_where_it_began(toy_model, rl_config):
    reference = Reference(toy_model)
    before = reference.state()
    for step in range(1, 5):
        move(toy_model)
        reference.follow(toy_model, step, rl_config(kl=KLConfig(coef=0.1)))
    assert same(reference.state(), before)


def test_its_state_is_a_copy_and_comes_back_whole(toy_model, rl_config):
    first = Reference(toy_model)
    move(toy_model)
    state = first.state()
    second = Reference(toy_model)
    assert not same(second.state(), state)
    second.restore(state)
    assert same(second.state(), state)
    first.follow(toy_model, 1, rl_config(kl=KLConfig(coef=0.1, refresh_every_steps=1)))
    assert not same(first.state(), state)


def test_the_state_of_another_model_is_refused(toy_model):
    reference = Reference(toy_model)
    state = reference.state()
    state.pop(next(iter(state)))
    with pytest.raises(UserError, match="reference"):
        reference.restore(state)
