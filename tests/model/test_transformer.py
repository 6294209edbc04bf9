import pytest
import torch
from torch.testing import assert_close

from nalar.kernels.attention import causal_attention, max_logit
from nalar.kernels.rotary import rotate
from nalar.model.moe import MoE, Router
from nalar.model.transformer import Transformer


def random_ids(shape, seed=0):
    return torch.randint(0, 96, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize(("tokens", "tiled"), [(1, False), (3, False), (1, True)])
def test_going_on_over_a_cache_equals_the_full_forward(tiny_model, make_pages, tokens, tiled):
    """Absorbed attention over latents is expanded attention, row by row at its own position."""
    ids, starts = random_ids((3, 90)), [5, 60, 1]
    whole = tiny_model(ids).states
    pages = make_pages(tiny_model.config, 3, 90)
    prompts = torch.cat([row[:n] for row, n in zip(ids, starts, strict=True)])
    states = tiny_model.extend(prompts, pages.cache, pages.prompts(starts))
    expected = torch.cat([row[:n] for row, n in zip(whole, starts, strict=True)])
    assert_close(states, expected, rtol=0, atol=2e-5)
    for _ in range(20 if tokens == 1 else 5):
        own = torch.stack([torch.arange(n, n + tokens) for n in starts])
        paging = pages.rows(starts, tokens, tiled=tiled)
        states = tiny_model.extend(ids.gather(1, own).flatten(), pages.cache, paging)
        expected = whole[torch.arange(3)[:, None], own].flatten(0, 1)
        assert_close(states, expected, rtol=0, atol=2e-5)
        starts = [n + tokens for n in starts]


@torch.no_grad()
def test_a_prompt_in_chunks_equals_the_full_forward(tiny_model, make_pages):
    ids = random_ids((1, 60))
    whole = tiny_model(ids).states[0]
    pages = make_pages(tiny_model.config, 1, 60)
    states = [tiny_model.extend(ids[0, :20], pages.cache, pages.prompts([20]))]
    for start, end in ((20, 21), (21, 45), (45, 60)):
        paging = pages.chunk(0, start, end)
        states.append(tiny_model.extend(ids[0, start:end], pages.cache, paging))
    assert_close(torch.cat(states), whole, rtol=0, atol=2e-5)


@torch.no_grad()
def test_observed_logits_are_the_largest_and_the_bound_is_close_above(tiny_model):
    ids = random_ids((4, 33))
    exact = tiny_model(ids, observe="exact").max_logits
    attention, x = tiny_model.model.layers[0].self_attn, tiny_model.model.embed_tokens(ids)
    normed = tiny_model.model.layers[0].input_layernorm(x)
    turn = torch.view_as_complex(tiny_model.turn_table[:33])
    q = torch.cat(attention.queries(normed, turn), -1)
    latent, key = attention.latent(normed, turn)
    k_nope = attention.kv_b_proj(latent).unflatten(-1, (2, -1))[..., :12]
    k = torch.cat([k_nope, key[:, :, None].expand(-1, -1, 2, -1)], -1)
    logits = torch.einsum("bthk,bshk->bhts", q, k) * attention.scale
    logits.masked_fill_(torch.ones(33, 33).triu(1).bool(), -torch.inf)
    assert_close(exact[0], logits.amax((0, 2, 3)), rtol=1e-5, atol=1e-5)
    for bound, largest in zip(tiny_model(ids, observe="bound").max_logits, exact, strict=True):
        assert (bound >= largest - 1e-5).all()
        assert (bound <= largest + torch.tensor(33.0).log() + 1e-5).all()


@torch.no_grad()
def test_fused_attention_equals_softmax_written_out():
    gen = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 19, 8, generator=gen) for _ in range(3))
    logits = (q @ k.transpose(-1, -2) * 0.3).masked_fill(
        torch.ones(19, 19).triu(1).bool(), -torch.inf
    )
    out, bound = causal_attention(q, k, v, scale=0.3, observe="bound")
    assert_close(out, logits.softmax(-1) @ v, rtol=1e-5, atol=1e-5)
    assert_close(bound, logits.logsumexp(-1).amax((0, 2)), rtol=1e-5, atol=1e-5)
    assert_close(max_logit(q, k, scale=0.3, chunk=7), logits.amax((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_rotation_keeps_length_and_depends_on_distance_only(tiny_model):
    turn = torch.view_as_complex(tiny_model.turn_table)
    q, k = torch.randn(8), torch.randn(8)
    near = rotate(q, turn[9]) @ rotate(k, turn[4])
    far = rotate(q, turn[105]) @ rotate(k, turn[100])
    assert_close(near, far, rtol=1e-4, atol=1e-5)
    assert_close(rotate(q, turn[77]).norm(), q.norm())


def test_routing_by_hand(tiny_config):
    """Two experts of six; the bias chooses expert 5, its weight still comes from the raw score."""
    router = Router(tiny_config)
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, 0] = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0, -3.0])
        router.e_score_correction_bias[5] = 1.0
    x = torch.zeros(1, tiny_config.hidden_size)
    x[0, 0] = 1.0
    ids, weights, _ = router(x)
    assert sorted(ids[0].tolist()) == [0, 5]
    s0, s5 = torch.tensor(2.0).sigmoid(), torch.tensor(-3.0).sigmoid()
    expected = {0: s0 / (s0 + s5) * 1.7, 5: s5 / (s0 + s5) * 1.7}
    for i, w in zip(ids[0].tolist(), weights[0], strict=True):
        assert_close(w, expected[i])


def test_rebalancing_is_centred_and_moves_against_the_load(tiny_config):
    router = Router(tiny_config)
    router.rebalance(torch.tensor([10, 0, 4, 4, 3, 3]), speed=0.1)
    bias = router.e_score_correction_bias
    assert_close(bias.mean(), torch.tensor(0.0), atol=1e-7, rtol=0)
    assert bias[0] < 0 < bias[1]
    assert bias[4] > 0 > bias[2]


def test_a_mixture_counts_every_choice_once(tiny_model):
    mlp = tiny_model.model.layers[2].mlp
    assert isinstance(mlp, MoE)
    _, load, _ = mlp(torch.randn(35, 32))
    assert load.sum() == 35 * 2


def test_frozen_weights_are_initialized_as_others_are(tiny_model):
    frozen, other = (
        Transformer(tiny_model.config).requires_grad_(False),
        Transformer(tiny_model.config),
    )
    for model in (frozen, other):
        model.initialize(seed=0)
    assert not list(frozen.trained_parameters(ahead=True))
    for name, weight in other.named_parameters():
        assert torch.equal(weight, frozen.get_parameter(name)), name
