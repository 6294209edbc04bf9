import math

import pytest
import torch

from nalar.optim.qkclip import HeadViews, clip_heads

HEADS, NOPE, ROPE, VALUE, HIDDEN, LATENT, TOKENS = 3, 6, 4, 5, 16, 8, 12


def rotate(x_THR):
    """Rotary positions on pairs of neighbours."""
    positions_T11 = torch.arange(TOKENS)[:, None, None]
    angle = positions_T11 * 10.0 ** -torch.arange(ROPE // 2)
    pairs = torch.view_as_complex(x_THR.reshape(*x_THR.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


class ToyAttention:
    """The logits of latent attention, written out head by head in float32."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        self.q = normal(HEADS * (NOPE + ROPE), HIDDEN)
        self.q[: NOPE + ROPE] *= 0.05  # head 0 stays below any cap of these tests
        self.kv_b = normal(HEADS * (NOPE + VALUE), LATENT)
        self.x_TD, self.latent_TC = normal(TOKENS, HIDDEN), normal(TOKENS, LATENT)
        self.k_rope_T1R = rotate(normal(TOKENS, 1, ROPE))

    def views(self):
        return HeadViews.latent([self.q, self.kv_b], num_heads=HEADS, nope_dim=NOPE)

    def max_logits(self):
        q = (self.x_TD @ self.q.T).view(TOKENS, HEADS, NOPE + ROPE)
        k_nope = (self.latent_TC @ self.kv_b.T).view(TOKENS, HEADS, NOPE + VALUE)[..., :NOPE]
        q_rope, k_rope = rotate(q[..., NOPE:]), self.k_rope_T1R.expand(-1, HEADS, -1)
        logits = torch.einsum("thn,shn->hts", q[..., :NOPE], k_nope)
        logits = (logits + torch.einsum("thr,shr->hts", q_rope, k_rope)) / math.sqrt(NOPE + ROPE)
        hidden = torch.ones(TOKENS, TOKENS).triu(1).bool()
        return logits.masked_fill(hidden, -math.inf).amax((1, 2))


def test_a_capped_head_peaks_at_exactly_tau_and_others_are_untouched():
    toy = ToyAttention()
    before, q, kv_b = toy.max_logits(), toy.q.clone(), toy.kv_b.clone()
    tau = float(before[1:].min()) * 0.5
    assert before[0] < tau < before[1:].min()
    factor = clip_heads(toy.views(), before, tau)
    after = toy.max_logits()
    torch.testing.assert_close(after[1:], torch.full((2,), tau), rtol=1e-5, atol=0)
    torch.testing.assert_close(factor, torch.cat([torch.ones(1), tau / before[1:]]))
    assert torch.equal(after[0], before[0])
    assert torch.equal(toy.q[: NOPE + ROPE], q[: NOPE + ROPE])
    values = toy.kv_b.view(HEADS, NOPE + VALUE, LATENT)[:, NOPE:]
    assert torch.equal(values, kv_b.view(HEADS, NOPE + VALUE, LATENT)[:, NOPE:])


@pytest.mark.parametrize("logit", [0.0, -3.0, -math.inf, math.nan, math.inf, 7.0])
def test_no_logit_below_the_cap_or_without_a_number_moves_a_weight(logit):
    toy = ToyAttention()
    q, kv_b = toy.q.clone(), toy.kv_b.clone()
    factor = clip_heads(toy.views(), torch.full((HEADS,), logit), tau=7.0)
    assert torch.equal(factor, torch.ones(HEADS))
    assert torch.equal(toy.q, q)
    assert torch.equal(toy.kv_b, kv_b)


def test_the_master_is_scaled_and_the_weights_are_its_rounding():
    toy = ToyAttention()
    q_bf16, kv_b_bf16 = toy.q.bfloat16(), toy.kv_b.bfloat16()
    rounded = HeadViews.latent([q_bf16, kv_b_bf16], num_heads=HEADS, nope_dim=NOPE)
    clip_heads(rounded, toy.max_logits(), tau=1.0, master=toy.views())
    torch.testing.assert_close(toy.max_logits()[1:], torch.ones(2), rtol=1e-5, atol=0)
    assert torch.equal(q_bf16, toy.q.bfloat16())
    assert torch.equal(kv_b_bf16, toy.kv_b.bfloat16())


def test_a_master_that_is_the_weight_itself_is_scaled_once():
    once, twice = ToyAttention(), ToyAttention()
    clip_heads(once.views(), once.max_logits(), tau=1.0)
    clip_heads(twice.views(), twice.max_logits(), tau=1.0, master=twice.views())
    assert torch.equal(once.q, twice.q)
    assert torch.equal(once.kv_b, twice.kv_b)


def test_views_of_parameters_write_through():
    q, kv_b = torch.nn.Parameter(ToyAttention().q), torch.nn.Parameter(ToyAttention().kv_b)
    before = q.detach().clone()
    views = HeadViews.latent([q, kv_b], num_heads=HEADS, nope_dim=NOPE)
    clip_heads(views, torch.full((HEADS,), 4.0), tau=1.0)
    assert views.take_whole[0].shape == (HEADS, ROPE, HIDDEN)
    rope_rows = q.detach().view(HEADS, NOPE + ROPE, HIDDEN)[:, NOPE:]
    assert torch.equal(rope_rows, before.view(HEADS, NOPE + ROPE, HIDDEN)[:, NOPE:] / 4)


class ToyGrouped:
    """Grouped-query attention with biases, written out: heads 0 and 1 share the first keys, 2 and 3 the others."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        rows = (4 * ROPE, 2 * ROPE)
        self.q, self.k = (torch.randn(n, HIDDEN, generator=generator) for n in rows)
        self.q_bias, self.k_bias = (torch.randn(n, generator=generator) for n in rows)
        self.q[: 2 * ROPE] *= 0.05
        self.q_bias[: 2 * ROPE] *= 0.05
        self.x_TD = torch.randn(TOKENS, HIDDEN, generator=generator)

    def weights(self):
        return [self.q, self.k, self.q_bias, self.k_bias]

    def max_logits(self):
        q = rotate((self.x_TD @ self.q.T + self.q_bias).view(TOKENS, 4, ROPE))
        k = rotate((self.x_TD @ self.k.T + self.k_bias).view(TOKENS, 2, ROPE))
        logits = torch.einsum("thk,shk->hts", q, k.repeat_interleave(2, 1))
        hidden = torch.ones(TOKENS, TOKENS).triu(1).bool()
        return logits.masked_fill(hidden, -math.inf).amax((1, 2))


def test_heads_that_share_keys_are_capped_together_and_others_are_untouched():
    toy = ToyGrouped()
    before, weights = toy.max_logits(), [w.clone() for w in toy.weights()]
    tau = float(before[2:].min()) * 0.5
    assert before[:2].max() < tau
    factor = clip_heads(HeadViews.grouped(toy.weights(), num_kv_heads=2), before, tau)
    after = toy.max_logits()
    torch.testing.assert_close(factor, torch.tensor([1.0, tau / before[2:].max()]))
    torch.testing.assert_close(after[2:], before[2:] * factor[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(after.max(), torch.tensor(tau), rtol=1e-5, atol=0)
    assert torch.equal(after[:2], before[:2])
    for w, old in zip(toy.weights(), weights, strict=True):
        assert torch.equal(w[: len(w) // 2], old[: len(w) // 2])
        assert not torch.equal(w[len(w) // 2 :], old[len(w) // 2 :])


def test_one_head_without_a_number_does_not_hide_another_of_its_group():
    toy = ToyGrouped()
    logits = torch.tensor([math.nan, 8.0, -math.inf, 1.0])
    factor = clip_heads(HeadViews.grouped(toy.weights(), num_kv_heads=2), logits, tau=4.0)
    assert factor.tolist() == [0.5, 1.0]
