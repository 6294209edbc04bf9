import pytest
import torch
from torch.testing import assert_close

from nalar.config import ConfigError
from nalar.kernels import switch
from nalar.model.config import ModelConfig
from nalar.model.moe import MoE, Router

BASE = {
    "vocab_size": 8,
    "hidden_size": 6,
    "intermediate_size": 8,
    "moe_intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 4,
    "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 2,
    "v_head_dim": 2,
}


def router_of(logits: list[float], **fields: object) -> Router:
    """A router that gives these logits to the one token `TOKEN`."""
    router = Router(ModelConfig(**(BASE | fields)))
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, 0] = torch.tensor(logits)
    return router


TOKEN = torch.tensor([[1.0, 0, 0, 0, 0, 0]])


def routed(router: Router) -> dict[int, float]:
    ids, weights, _ = router(TOKEN)
    return dict(zip(ids[0].tolist(), weights[0].tolist(), strict=True))


def test_only_experts_of_the_best_groups_are_chosen():
    """Groups of two: the last has the best expert, but a bad second, so the sum of its two is least."""
    logits = [1.0, 0.9, 0.8, 1.1, 3.0, -9.0]
    router = router_of(logits, n_group=3, topk_group=2, num_experts_per_tok=3)
    assert set(routed(router)) == {0, 1, 3}
    assert set(routed(router_of(logits, num_experts_per_tok=3))) == {0, 3, 4}


def test_a_group_that_is_out_stays_out_when_all_others_are_below_zero():
    router = router_of([0.1, 0.0, -0.1, -0.2, -5.0, -6.0], n_group=3, topk_group=1)
    router.e_score_correction_bias.fill_(-2.0)
    assert set(routed(router)) == {0, 1}


def test_softmax_scores_are_over_all_experts_before_they_are_kept():
    logits = [2.0, 1.0, 0.0, -1.0, -2.0, -3.0]
    scores = torch.tensor(logits).softmax(0)
    plain = {"scoring_func": "softmax", "topk_method": "greedy"}
    got = routed(router_of(logits, **plain, norm_topk_prob=False))
    assert_close(torch.tensor([got[0], got[1]]), scores[:2])
    got = routed(router_of(logits, **plain, norm_topk_prob=True))
    assert_close(torch.tensor([got[0], got[1]]), torch.tensor(logits[:2]).softmax(0))


def test_a_greedy_router_has_no_bias_and_says_so_when_asked_to_balance():
    router = router_of([0.0] * 6, topk_method="greedy")
    assert dict(router.named_buffers()) == {}
    router.rebalance(torch.ones(6), speed=0.0)
    with pytest.raises(ConfigError, match="greedy"):
        router.rebalance(torch.ones(6), speed=0.1)


@pytest.mark.few(1)
@pytest.mark.parametrize("shared", [0, 2])
def test_a_mixture_as_a_gpu_computes_it_gives_what_it_gives_here(device, shared):
    """Few rows in the kernels' few launches, many rows sorted and differentiated by kernels."""
    pytest.importorskip("triton")
    config = ModelConfig(**(BASE | {"hidden_size": 16, "n_shared_experts": shared}))
    mixture = MoE(config)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.normal_(generator=gen)
    mixture = mixture.to(device)
    x = torch.randn(9, 16, generator=gen).to(device).requires_grad_()
    kernels = ("few_row_experts", "few_row_dense", "router", "routed_experts", "route_sort")
    kernels += ("swiglu", "spread_choices", "sum_choices")
    leaves = [x, *(p for p in mixture.parameters())]

    def computed() -> list[torch.Tensor]:
        with torch.no_grad():
            inferred = mixture.infer(x)
        out, load, _ = mixture(x)
        return [inferred, out, load.float(), *torch.autograd.grad(out.square().sum(), leaves)]

    plain = computed()
    with switch.forced(*kernels):
        ours = computed()
    for a, b in zip(ours, plain, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max()))
