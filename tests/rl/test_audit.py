"""Experts chosen by both passes: the same for one model, and not the same where one pass has gone wrong."""

import pytest
import torch

from nalar.model.moe import Router
from nalar.model.transformer import Transformer
from nalar.recipes.zero import zero_cpu
from nalar.rl.audit import rerouted_frac


@pytest.fixture
def model():
    model = Transformer(zero_cpu().model.model_copy(update={"initializer_range": 0.18}))
    model.initialize(seed=1)
    return model


@pytest.fixture
def some(make_rollout):
    generator = torch.Generator().manual_seed(0)
    lengths = [(3, 40), (20, 1), (9, 90)]
    return [
        make_rollout(*(torch.randint(300, (n,), generator=generator).tolist() for n in both))
        for both in lengths
    ]


def test_one_model_sends_tokens_to_the_same_experts_both_ways(model, some):
    assert rerouted_frac(model, some) == 0
    assert not any("forward" in vars(r) or "infer" in vars(r) for r in model.routers())


def test_a_sampler_that_routes_otherwise_is_found(model, some, monkeypatch):
    infer = Router.infer

    def tilted(self, x_TD):
        ids_TK, weights_TK = infer(self, x_TD)
        ids_TK = ids_TK.clone()
        ids_TK[::2, 0] = (ids_TK[::2].max(-1).values + 1) % 8
        return ids_TK, weights_TK

    monkeypatch.setattr(Router, "infer", tilted)
    assert rerouted_frac(model, some) > 0.3


def test_a_dense_model_has_nothing_to_choose(some):
    shape = {"n_routed_experts": 0, "n_shared_experts": 0, "num_experts_per_tok": 0}
    model = Transformer(zero_cpu().model.model_copy(update=shape))
    model.initialize(seed=0)
    assert rerouted_frac(model, some) is None
