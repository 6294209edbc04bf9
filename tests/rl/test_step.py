"""Batches against a plain loop, micro-batching that changes nothing, and a bandit that is solved."""

import random

import pytest
import torch
from torch.testing import assert_close

from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Request, SamplingParams
from nalar.kernels import attention, logprobs, switch
from nalar.optim import muonclip
from nalar.optim.muonclip import MuonClip
from nalar.rl.step import policy_batches, trainer_logprobs, update, useful

CPU = torch.device("cpu")


@pytest.fixture
def rollouts(make_rollout):
    """Eleven sequences of many lengths, prompts and responses of one token among them."""
    rng = random.Random(0)
    lengths = [(1, 1), (1, 9), (7, 1), (3, 5), (3, 5), (2, 12), (6, 6), (4, 2), (9, 3), (5, 8)]
    return [
        make_rollout(
            [rng.randrange(12) for _ in range(prompt)],
            [rng.randrange(12) for _ in range(response)],
            logprobs=[-rng.random() * 3 for _ in range(response)],
            reward=float(rng.randrange(2)),
            finish=rng.choice(["stop", "length"]),
        )
        for prompt, response in [*lengths, (8, 20)]
    ]


@torch.no_grad()
def by_hand(model, rollout):
    """Each response token's log-probability from a forward pass over nothing but what stands before it."""
    ids, found = list(rollout.prompt_ids), []
    for token in rollout.response.token_ids:
        state = model(torch.tensor([ids])).states[0, -1]
        found.append(float(model.logits(state).log_softmax(-1)[token]))
        ids.append(token)
    return found


def test_what_nobody_drew_is_read_and_not_learned(toy_model, make_rollout):
    rollout = make_rollout(
        [3, 1], [4, 7, 7, 5, 2], logprobs=[-1, 0, 0, -2, -3], drawn=[True, False, False, True, True]
    )
    [batch] = policy_batches([rollout], [0.5], max_tokens=64, device=CPU)
    assert batch.ids_T.tolist() == [3, 1, 4, 7, 7, 5]
    assert batch.where_N.tolist() == [1, 4, 5]
    assert batch.targets_N.tolist() == [4, 5, 2]
    assert batch.old_logprobs_N.tolist() == [-1, -2, -3]
    assert batch.advantages_N.tolist() == [0.5] * 3
    with torch.no_grad():
        logprobs_N, _, _ = trainer_logprobs(toy_model, batch)
    whole = by_hand(toy_model, rollout)
    torch.testing.assert_close(logprobs_N, torch.tensor([whole[0], whole[3], whole[4]]))


@pytest.mark.parametrize("max_tokens", [1, 30, 64, 10_000])
def test_every_token_is_placed_as_a_plain_loop_places_it(toy_model, rollouts, max_tokens):
    expected = {r.response.logprobs: by_hand(toy_model, r) for r in rollouts}
    advantages = [float(i) for i in range(len(rollouts))]
    seen = []
    for batch in policy_batches(rollouts, advantages, max_tokens=max_tokens, device=CPU):
        lengths = [rows * tokens for rows, tokens in batch.documents.sides]
        starts_M = (batch.documents.positions_N == 0).cumsum(0) - 1
        assert len(batch.ids_T) <= max_tokens or int(starts_M[-1]) == 0
        assert sum(lengths) >= len(batch.ids_T)
        with torch.no_grad():
            logprobs_N, _, _ = trainer_logprobs(toy_model, batch)
        row_N = starts_M[batch.where_N]
        for row in range(int(starts_M[-1]) + 1):
            own = row_N == row
            rollout = rollouts[int(batch.advantages_N[own][0])]
            seen.append(rollout.response.logprobs)
            assert batch.targets_N[own].tolist() == list(rollout.response.token_ids)
            assert_close(
                batch.old_logprobs_N[own], torch.tensor(rollout.response.logprobs), rtol=0, atol=0
            )
            assert (batch.advantages_N[own] == batch.advantages_N[own][0]).all()
            computed = torch.tensor(expected[rollout.response.logprobs])
            assert_close(logprobs_N[own], computed, rtol=0, atol=1e-5)
    assert sorted(seen) == sorted(expected)  # each sequence once


def test_load_counts_inputs_and_no_padding(toy_model, rollouts):
    """Every position that predicts a token of its own sequence, whatever stands beside it in the batch."""
    inputs = sum(len(r.prompt_ids) + len(r.response.token_ids) - 1 for r in rollouts)
    totals = []
    for max_tokens in (1, 10_000):
        batches = policy_batches(rollouts, [0.0] * 11, max_tokens=max_tokens, device=CPU)
        loads = [trainer_logprobs(toy_model, batch)[2][0] for batch in batches]
        totals.append(torch.stack(loads).sum(0))
    assert totals[0].sum() == inputs * toy_model.config.num_experts_per_tok
    assert torch.equal(*totals)


def gradients(model, rollouts, config):
    """The gradients of one update and the balance bias after it; the weights are put back."""
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = MuonClip(model.named_parameters(), config.optim)
    metrics = update(model, optimizer, [rollouts], config, lr_factor=1.0)
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    bias = [r.e_score_correction_bias.clone() for r in model.routers()]
    model.load_state_dict(before)
    return found, bias, metrics


def test_cutting_into_micro_batches_changes_nothing_but_rounding(toy_model, rollouts, rl_config):
    whole, whole_bias, metrics = gradients(toy_model, rollouts, rl_config(micro_batch_tokens=9999))
    norm = torch.stack([g.norm() for g in whole.values()]).norm()
    assert norm > 0.01
    for tokens in (1, 40):
        cut, bias, cut_metrics = gradients(
            toy_model, rollouts, rl_config(micro_batch_tokens=tokens)
        )
        off = torch.stack([(cut[name] - whole[name]).norm() for name in whole]).norm()
        assert off < 1e-6 * norm
        assert all(torch.equal(a, b) for a, b in zip(bias, whole_bias, strict=True))
        assert cut_metrics.tokens == metrics.tokens
        assert cut_metrics.entropy == pytest.approx(metrics.entropy, rel=1e-5)
        assert cut_metrics.clipped_frac == metrics.clipped_frac
        assert cut_metrics.step.loss == pytest.approx(metrics.step.loss, rel=1e-5)
        assert cut_metrics.log_ratio_rms == pytest.approx(metrics.log_ratio_rms, rel=1e-5)


def test_gradients_are_those_of_the_loss_written_out(toy_model, rollouts, rl_config):
    """A loop over sequences and tokens, differentiated by autograd, the clip left to torch."""
    config = rl_config(advantage_std=False)
    got, _, _ = gradients(toy_model, rollouts, config)
    mean = sum(r.reward for r in rollouts) / len(rollouts)
    total, tokens = torch.zeros(()), 0
    for r in rollouts:
        ids = torch.tensor([[*r.prompt_ids, *r.response.token_ids]])
        logprobs = toy_model.logits(toy_model(ids).states[0]).log_softmax(-1)
        for i, token in enumerate(r.response.token_ids):
            ratio = (logprobs[len(r.prompt_ids) - 1 + i, token] - r.response.logprobs[i]).exp()
            a = r.reward - mean
            total = total + torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
            tokens += 1
    toy_model.zero_grad()
    (-total / tokens).backward()
    for name, p in toy_model.named_parameters():
        assert_close(got[name], p.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_the_path_of_gpus_has_the_same_gradients(toy_model, rollouts, rl_config, monkeypatch):
    """Each token's own gradient from above goes through the chunked logits; sequences are of many lengths."""
    expected, bias, metrics = gradients(toy_model, rollouts, rl_config())
    monkeypatch.setattr(attention, "_is_on_cpu", lambda x: False)
    monkeypatch.setattr(attention, "can_fuse", lambda q, v: True)
    monkeypatch.setattr(logprobs, "is_rounded", lambda states, head: True)
    monkeypatch.setattr(muonclip, "_is_lean", lambda device: True)
    with switch.forced("routed_experts"):
        found, found_bias, found_metrics = gradients(toy_model, rollouts, rl_config())
    for name, gradient in expected.items():
        assert_close(found[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    assert all(torch.equal(a, b) for a, b in zip(bias, found_bias, strict=True))
    assert found_metrics.entropy == pytest.approx(metrics.entropy, rel=1e-5)
    assert found_metrics.log_ratio_rms == pytest.approx(metrics.log_ratio_rms, rel=1e-5)


def test_a_silent_group_is_dropped_from_loss_and_denominator(
    toy_model, rollouts, make_rollout, rl_config
):
    config = rl_config()
    silent = [make_rollout([1, 2], [3, 4, 5], reward=0.1) for _ in range(3)]
    kept, advantages = useful([silent, rollouts], config)
    assert kept == rollouts
    assert len(advantages) == len(rollouts)
    alone, _, metrics = gradients(toy_model, rollouts, config)
    optimizer = MuonClip(toy_model.named_parameters(), config.optim)
    both = update(toy_model, optimizer, [silent, rollouts], config, lr_factor=1.0)
    assert both.tokens == metrics.tokens
    assert both.step.grad_norm == metrics.step.grad_norm
    assert all(torch.equal(p.grad, alone[name]) for name, p in toy_model.named_parameters())


def test_nothing_moves_where_all_groups_are_silent(toy_model, make_rollout, rl_config):
    config = rl_config()
    before = {name: t.clone() for name, t in toy_model.state_dict().items()}
    optimizer = MuonClip(toy_model.named_parameters(), config.optim)
    groups = [[make_rollout([1], [2, 3], reward=r) for _ in range(4)] for r in (0.0, 1.1)]
    assert update(toy_model, optimizer, groups, config, lr_factor=1.0) is None
    assert optimizer.steps == 0
    assert all(torch.equal(t, before[name]) for name, t in toy_model.state_dict().items())


def test_truncated_responses_can_be_left_out_while_their_reward_still_counts(
    make_rollout, rl_config
):
    group = [
        make_rollout([1], [2, 3], reward=1.0),
        make_rollout([1], [4], reward=0.0),
        make_rollout([1], [5] * 6, reward=0.0, finish="length"),
        make_rollout([1], [6], reward=0.0),
    ]
    masked = rl_config(mask_truncated=True, advantage_std=False)
    kept, advantages = useful([group], masked)
    assert [r.response.token_ids for r in kept] == [(2, 3), (4,), (6,)]
    assert advantages == pytest.approx([0.75, -0.25, -0.25])
    all_kept, _ = useful([group], rl_config(advantage_std=False))
    assert len(all_kept) == 4


def test_a_group_that_was_cut_as_a_whole_teaches_nothing(toy_model, make_rollout, rl_config):
    config = rl_config(mask_truncated=True)
    group = [make_rollout([1], [2], reward=r, finish="length") for r in (0.0, 1.0)]
    optimizer = MuonClip(toy_model.named_parameters(), config.optim)
    assert update(toy_model, optimizer, [group], config, lr_factor=1.0) is None


def test_a_bandit_is_solved(toy_model, make_rollout, rl_config):
    """One token, twelve arms, one of them paid for each of two prompts: found and held within 25 updates."""
    paid = {(1,): 7, (2,): 4}
    config = rl_config(steps=25)
    optimizer = MuonClip(toy_model.named_parameters(), config.optim)
    engine = Engine(toy_model, EngineConfig(max_model_len=8))
    first = None
    for step in range(25):
        requests = [
            Request(prompt, SamplingParams(n=24, max_tokens=1, seed=1000 * step + i))
            for i, prompt in enumerate(paid)
        ]
        groups = [
            [
                make_rollout(
                    request.prompt_ids,
                    completion.token_ids,
                    logprobs=completion.logprobs,
                    reward=float(completion.token_ids[0] == paid[request.prompt_ids]),
                )
                for completion in completions
            ]
            for request, completions in zip(requests, engine.generate(requests), strict=True)
        ]
        metrics = update(toy_model, optimizer, groups, config, lr_factor=1.0)
        first = first or metrics
    assert first.log_ratio_rms < 1e-6  # on policy
    assert first.clipped_frac == 0
    with torch.no_grad():
        for prompt, arm in paid.items():
            states = toy_model(torch.tensor([prompt])).states[0, -1]
            assert toy_model.logits(states).softmax(-1)[arm] > 0.9
