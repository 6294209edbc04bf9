"""The router as one kernel, under Triton's interpreter: the same experts and weights as the router in torch."""

import pytest
import torch
from torch.testing import assert_close

from nalar.kernels import switch
from nalar.model.config import ModelConfig
from nalar.model.moe import Router

gpu = pytest.importorskip("nalar.kernels.gpu.router")

pytestmark = pytest.mark.few(3)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

BASE = {
    "vocab_size": 8,
    "intermediate_size": 8,
    "moe_intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "kv_lora_rank": 4,
    "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 2,
    "v_head_dim": 2,
}


def router_of(hidden: int, experts: int, k: int, **fields: object) -> Router:
    router = Router(
        ModelConfig(
            **BASE, hidden_size=hidden, n_routed_experts=experts, num_experts_per_tok=k, **fields
        )
    )
    gen = torch.Generator().manual_seed(experts)
    with torch.no_grad():
        router.weight.copy_(torch.randn(experts, hidden, generator=gen) / hidden**0.5)
        if router.has_bias:
            router.e_score_correction_bias.copy_(torch.randn(experts, generator=gen) / 4)
    return router.to(DEVICE)


SOFTMAX = {"scoring_func": "softmax", "topk_method": "greedy"}
CASES = {
    "the 544M model's": (router_of(64, 32, 4), 9),
    "scaled and not normed": (
        router_of(30, 6, 2, norm_topk_prob=False, routed_scaling_factor=2.5),
        4,
    ),
    "softmax": (router_of(48, 10, 3, **SOFTMAX), 5),
    "groups": (router_of(40, 24, 5, n_group=6, topk_group=2), 12),
    "groups of a number that is no power of two": (
        router_of(40, 21, 4, n_group=7, topk_group=3),
        12,
    ),
    "all of them": (router_of(20, 4, 4), 3),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("own", [True, False])
def test_the_kernel_routes_as_torch_does(name, own, monkeypatch):
    monkeypatch.setattr(gpu, "OWN_PRODUCT", 10**6 if own else 0)
    router, T = CASES[name]
    x = torch.randn(T, router.config.hidden_size, generator=torch.Generator().manual_seed(1))
    x = x.to(DEVICE)
    with torch.no_grad():
        want_ids, want_weights, _ = router(x)
        with switch.forced("router"):
            ids, weights = router.infer(x)
            ids_alone, _, _ = router(x)
    assert torch.equal(ids_alone, want_ids)
    assert ids.dtype == torch.int64 and weights.dtype == torch.float32
    assert torch.equal(ids, want_ids)
    assert_close(weights, want_weights, rtol=2e-6, atol=1e-7)


def test_rows_and_weights_of_other_dtypes_are_multiplied_in_float32(monkeypatch):
    router = router_of(64, 16, 2).to(torch.bfloat16)
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE, torch.bfloat16)
    for own in (10**6, 0):
        monkeypatch.setattr(gpu, "OWN_PRODUCT", own)
        with torch.no_grad():
            want_ids, want_weights, _ = router(x)
            with switch.forced("router"):
                ids, weights = router.infer(torch.cat([x, x], 1)[:, :64])
        assert torch.equal(ids, want_ids)
        assert_close(weights, want_weights, rtol=2e-6, atol=1e-7)


def test_of_equal_merits_the_lowest_number_is_chosen():
    router = router_of(8, 9, 4)
    with torch.no_grad():
        router.e_score_correction_bias.zero_()
        router.weight.zero_()
    with switch.forced("router"), torch.no_grad():
        ids, weights = router.infer(torch.ones(2, 8, device=DEVICE))
    assert ids.tolist() == [[0, 1, 2, 3]] * 2
    assert_close(weights, torch.full((2, 4), 0.25, device=DEVICE))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("groups", [{}, {"n_group": 3, "topk_group": 1}])
def test_ids_are_different_and_within_range_whatever_came(groups):
    """Not numbers, and so no group that is better than another."""
    router = router_of(8, 9, 3, **groups)
    x = torch.ones(3, 8, device=DEVICE)
    x[0], x[1, 0] = torch.nan, torch.inf
    with switch.forced("router"), torch.no_grad():
        ids, weights = router.infer(x)
    for row in ids.tolist():
        assert len(set(row)) == 3 and min(row) >= 0 and max(row) < 9
    assert weights[0].isnan().all()


def test_no_rows_are_routed_nowhere():
    with switch.forced("router"):
        ids, weights = router_of(8, 9, 3).infer(torch.ones(0, 8, device=DEVICE))
    assert ids.shape == weights.shape == (0, 3)
