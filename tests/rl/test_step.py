"""Batches against a plain loop, micro-batching that changes nothing, and a bandit that is solved."""

import random
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Request, SamplingParams
from nalar.kernels import attention, logprobs, switch
from nalar.optim import muonclip
from nalar.optim.muonclip import MuonClip
from nalar.rl.batches import policy_batches, trainer_logprobs
from nalar.rl.config import AdvantageConfig, CorrectionConfig, KLConfig, ObjectiveConfig
from nalar.rl.lessons import Lesson, lessons
from nalar.rl.reference import Reference
from nalar.rl.response import Response
from nalar.rl.step import teach, update

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
    [batch] = policy_batches([Lesson(rollout, 0.5)], max_tokens=64, device=CPU)
    assert batch.ids_T.tolist() == [3, 1, 4, 7, 7, 5]
    assert batch.where_N.tolist() == [1, 4, 5]
    assert batch.targets_N.tolist() == [4, 5, 2]
    assert batch.old_logprobs_N.tolist() == [-1, -2, -3]
    assert batch.advantages_N.tolist() == [0.5] * 3
    with torch.no_grad():
        logprobs_N, _, _ = trainer_logprobs(toy_model, batch)
    whole = by_hand(toy_model, rollout)
    torch.testing.assert_close(logprobs_N, torch.tensor([whole[0], whole[3], whole[4]]))


@pytest.mark.few(2)
@pytest.mark.parametrize("max_tokens", [1, 30, 64, 10_000])
def test_every_token_is_placed_as_a_plain_loop_places_it(toy_model, rollouts, max_tokens):
    expected = {r.response.logprobs: by_hand(toy_model, r) for r in rollouts}
    taught = [Lesson(r, float(i)) for i, r in enumerate(rollouts)]
    seen = []
    for batch in policy_batches(taught, max_tokens=max_tokens, device=CPU):
        lengths = [rows * tokens for rows, tokens in batch.documents.sides]
        starts_M = (batch.documents.positions_N == 0).cumsum(0) - 1
        assert len(batch.ids_T) <= max_tokens or int(starts_M[-1]) == 0
        assert sum(lengths) >= len(batch.ids_T)
        with torch.no_grad():
            logprobs_N, _, _ = trainer_logprobs(toy_model, batch)
        row_N = starts_M[batch.where_N]
        assert torch.equal(row_N.bincount(), batch.lengths_M)
        assert batch.order == tuple(batch.advantages_N[row_N == i][0] for i in row_N.unique())
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
        taught = [Lesson(r, 0.0) for r in rollouts]
        batches = policy_batches(taught, max_tokens=max_tokens, device=CPU)
        loads = [trainer_logprobs(toy_model, batch)[2][0] for batch in batches]
        totals.append(torch.stack(loads).sum(0))
    assert totals[0].sum() == inputs * toy_model.config.num_experts_per_tok
    assert torch.equal(*totals)


def once(model, optimizer, groups, config, reference=None):
    """One update on a whole rollout."""
    config = config.model_copy(update={"minibatches": 1})
    [minibatch], _ = teach(model, groups, config, reference)
    return update(model, optimizer, minibatch, config, lr_factor=1.0)


def gradients(model, rollouts, config, reference=None):
    """The gradients of one update and the balance bias after it; the weights are put back."""
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = MuonClip(model.named_parameters(), config.optim)
    metrics = once(model, optimizer, [rollouts], config, reference)
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    bias = [r.e_score_correction_bias.clone() for r in model.routers()]
    model.load_state_dict(before)
    return found, bias, metrics


def shaken(model, size=0.05):
    """A reference that is not the policy."""
    other = Reference(model)
    gen = torch.Generator().manual_seed(7)
    for p in other.model.parameters():
        p.add_(size * torch.randn(p.shape, generator=gen))
    return other


MASKED = CorrectionConfig(old_logprobs="trainer", weights="mask", cap=2.0, floor=0.5)
EVERY_PART = {
    "default": {},
    "sequences": {"objective": ObjectiveConfig(aggregation="sequence_mean", dual_clip=3.0)},
    "fixed": {"objective": ObjectiveConfig(aggregation="fixed_length"), "max_tokens": 20},
    "gspo": {
        "objective": ObjectiveConfig(name="gspo", clip_low=0.09, clip_high=0.09),
        "advantage": AdvantageConfig(name="rloo"),
    },
    "cispo": {"objective": ObjectiveConfig(name="cispo", entropy_coef=0.1), "temperature": 0.7},
    "kl": {"kl": KLConfig(coef=0.1), "temperature": 1.3},
    "truncated": {
        "correction": CorrectionConfig(old_logprobs="trainer", weights="truncate"),
        "advantage": AdvantageConfig(name="reinforce_pp"),
    },
    "masked": {
        "correction": MASKED,
        "objective": ObjectiveConfig(aggregation="sequence_mean"),
        "kl": KLConfig(coef=0.1),
    },
}


@pytest.mark.few(4)
@pytest.mark.parametrize("parts", EVERY_PART)
def test_cutting_into_micro_batches_changes_nothing_but_rounding(
    toy_model, rollouts, rl_config, parts
):
    """Nor does packing: a micro-batch holds one sequence, some, or all."""
    changes, reference = EVERY_PART[parts], shaken(toy_model)
    whole, whole_bias, metrics = gradients(
        toy_model, rollouts, rl_config(micro_batch_tokens=9999, **changes), reference
    )
    norm = torch.stack([g.norm() for g in whole.values()]).norm()
    assert norm > 0.01
    for tokens in (1, 40):
        config = rl_config(micro_batch_tokens=tokens, **changes)
        cut, bias, cut_metrics = gradients(toy_model, rollouts, config, reference)
        off = torch.stack([(cut[name] - whole[name]).norm() for name in whole]).norm()
        assert off < 1e-6 * norm
        assert all(torch.equal(a, b) for a, b in zip(bias, whole_bias, strict=True))
        assert cut_metrics.tokens == cut_metrics.counted_tokens == metrics.tokens
        assert cut_metrics.denominator == metrics.denominator
        for name in ("clipped_high_frac", "clipped_low_frac"):
            assert getattr(cut_metrics, name) == getattr(metrics, name)
        for name in ("entropy", "log_ratio_rms", "share_sum"):
            assert getattr(cut_metrics, name) == pytest.approx(
                getattr(metrics, name), rel=1e-5, abs=1e-6
            )
        assert cut_metrics.terms == pytest.approx(metrics.terms, rel=1e-5, abs=1e-6)
    expected = metrics.tokens / (16 * 20) if parts == "fixed" else 1.0
    assert metrics.share_sum == pytest.approx(expected)


def test_gradients_are_those_of_the_loss_written_out(toy_model, rollouts, rl_config):
    """A loop over sequences and tokens, differentiated by autograd, the clip left to torch."""
    config = rl_config(advantage=AdvantageConfig(name="dr_grpo"))
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


def flat(groups, config):
    return [lesson for group in lessons(groups, config) for lesson in group]


def test_a_silent_group_is_dropped_from_loss_and_denominator(
    toy_model, rollouts, make_rollout, rl_config
):
    config = rl_config()
    silent = [make_rollout([1, 2], [3, 4, 5], reward=0.1) for _ in range(3)]
    assert [lesson.rollout for lesson in flat([silent, rollouts], config)] == rollouts
    alone, _, metrics = gradients(toy_model, rollouts, config)
    optimizer = MuonClip(toy_model.named_parameters(), config.optim)
    both = once(toy_model, optimizer, [silent, rollouts], config)
    assert both.tokens == metrics.tokens
    assert both.step.grad_norm == metrics.step.grad_norm
    assert all(torch.equal(p.grad, alone[name]) for name, p in toy_model.named_parameters())


@pytest.mark.parametrize(
    "changes", [{"kl": KLConfig(coef=0.1)}, {"objective": ObjectiveConfig(entropy_coef=0.1)}]
)
def test_a_silent_group_stays_where_another_term_looks_at_it(make_rollout, rl_config, changes):
    silent = [make_rollout([1, 2], [3, 4, 5], reward=0.1) for _ in range(3)]
    assert [lesson.advantage for lesson in flat([silent], rl_config(**changes))] == [0.0] * 3


def test_a_fixed_length_counts_silent_groups_and_caps_in_the_denominator(
    toy_model, rollouts, make_rollout, rl_config
):
    """Two groups of 11 at a cap of 30: 660, of which the drawn tokens of one group count."""
    config = rl_config(
        objective=ObjectiveConfig(aggregation="fixed_length"), group_size=11, max_tokens=30
    )
    silent = [make_rollout([1], [3], reward=0.1) for _ in range(11)]
    optimizer = MuonClip(toy_model.named_parameters(), config.optim)
    metrics = once(toy_model, optimizer, [silent, rollouts], config)
    assert metrics.denominator == 660
    assert metrics.tokens == sum(len(r.response) for r in rollouts)
    assert metrics.share_sum == pytest.approx(metrics.tokens / 660)


def test_each_term_of_the_loss_is_seen(toy_model, rollouts, rl_config):
    """One that does nothing is seen to: a reference that is the policy pulls nowhere."""
    config = rl_config(kl=KLConfig(coef=0.1), objective=ObjectiveConfig(entropy_coef=0.01))
    _, _, metrics = gradients(toy_model, rollouts, config, Reference(toy_model))
    assert set(metrics.terms) == {"policy", "kl", "entropy"}
    assert metrics.terms["kl"] == metrics.kl == 0.0
    assert metrics.terms["entropy"] == pytest.approx(-0.01 * metrics.entropy)
    assert metrics.step.loss == pytest.approx(sum(metrics.terms.values()))
    _, _, pulled = gradients(toy_model, rollouts, config, shaken(toy_model))
    assert pulled.terms["kl"] == pytest.approx(0.1 * pulled.kl)
    assert pulled.kl > 1e-4


def test_the_terms_beside_the_policy_have_the_gradient_of_the_loss_written_out(
    toy_model, rollouts, rl_config
):
    """No advantage anywhere: what is left is 0.5 k3 - 0.2 H, at a temperature of 0.7, a mean over responses."""
    silent = [replace(r, reward=0.0) for r in rollouts]
    config = rl_config(
        temperature=0.7,
        kl=KLConfig(coef=0.5),
        objective=ObjectiveConfig(entropy_coef=0.2, aggregation="sequence_mean"),
    )
    reference = shaken(toy_model)
    got, _, _ = gradients(toy_model, silent, config, reference)
    total = torch.zeros(())
    for r in silent:
        ids = torch.tensor([[*r.prompt_ids, *r.response.token_ids]])
        first, targets = len(r.prompt_ids) - 1, torch.tensor(r.response.token_ids)[:, None]
        both = []
        for model in (toy_model, reference.model):
            logits = model.logits(model(ids).states[0])[first:-1] / 0.7
            both.append(logits.log_softmax(-1))
        d = both[1].gather(-1, targets) - both[0].gather(-1, targets)
        entropy = -(both[0].exp() * both[0]).sum(-1)
        total = total + (0.5 * (d.exp() - d - 1)).mean() - 0.2 * entropy.mean()
    toy_model.zero_grad()
    (total / len(silent)).backward()
    for name, p in toy_model.named_parameters():
        assert_close(got[name], p.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_without_a_reference_a_pull_towards_it_is_no_silent_nothing(toy_model, rollouts, rl_config):
    with pytest.raises(ValueError, match="reference"):
        teach(toy_model, [rollouts], rl_config(minibatches=1, kl=KLConfig(coef=0.1)))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_against_its_own_logprobs_the_first_ratio_is_one_to_the_bit(
    toy_model, rollouts, rl_config, temperature
):
    """Whatever was recorded: here it is noise."""
    config = rl_config(
        correction=CorrectionConfig(old_logprobs="trainer"),
        temperature=temperature,
        micro_batch_tokens=40,
    )
    _, _, metrics = gradients(toy_model, rollouts, config)
    assert metrics.log_ratio_rms == 0.0
    assert metrics.clipped_frac == 0.0
    [_], mismatch = teach(toy_model, [rollouts], config.model_copy(update={"minibatches": 1}))
    assert mismatch.log_ratio_rms > 0.5


def test_what_is_drawn_at_a_temperature_is_trained_at_it(toy_model, make_rollout, rl_config):
    """The sampler's log-probabilities at 0.7 are the trainer's at 0.7, and nobody's at 1."""
    engine = Engine(toy_model, EngineConfig(max_model_len=32))
    params = SamplingParams(n=8, max_tokens=12, temperature=0.7, seed=3)
    [completions] = engine.generate([Request((1, 2, 3), params)])
    group = [
        replace(make_rollout([1, 2, 3], []), response=Response.of(c), reward=float(i % 2))
        for i, c in enumerate(completions)
    ]
    _, _, same = gradients(toy_model, group, rl_config(temperature=0.7))
    assert same.log_ratio_rms < 1e-5
    _, _, other = gradients(toy_model, group, rl_config(temperature=1.0))
    assert other.log_ratio_rms > 0.05


def test_nothing_moves_where_all_groups_are_silent(toy_model, make_rollout, rl_config):
    config = rl_config()
    before = {name: t.clone() for name, t in toy_model.state_dict().items()}
    optimizer = MuonClip(toy_model.named_parameters(), config.optim)
    groups = [[make_rollout([1], [2, 3], reward=r) for _ in range(4)] for r in (0.0, 1.1)]
    assert once(toy_model, optimizer, groups, config) is None
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
    centred = AdvantageConfig(name="dr_grpo")
    kept = flat([group], rl_config(mask_truncated=True, advantage=centred))
    assert [one.rollout.response.token_ids for one in kept] == [(2, 3), (4,), (6,)]
    assert [one.advantage for one in kept] == pytest.approx([0.75, -0.25, -0.25])
    assert len(flat([group], rl_config(advantage=centred))) == 4


def test_a_group_that_was_cut_as_a_whole_teaches_nothing(toy_model, make_rollout, rl_config):
    config = rl_config(mask_truncated=True)
    group = [make_rollout([1], [2], reward=r, finish="length") for r in (0.0, 1.0)]
    optimizer = MuonClip(toy_model.named_parameters(), config.optim)
    assert once(toy_model, optimizer, [group], config) is None


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
        metrics = once(toy_model, optimizer, groups, config)
        first = first or metrics
    assert first.log_ratio_rms < 1e-6  # on policy
    assert first.clipped_frac == 0
    with torch.no_grad():
        for prompt, arm in paid.items():
            states = toy_model(torch.tensor([prompt])).states[0, -1]
            assert toy_model.logits(states).softmax(-1)[arm] > 0.9
