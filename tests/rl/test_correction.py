"""Weights on numbers one can do on paper; and learning that a wrong sampler would have spoilt is won back."""

import math
import random
from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Request, SamplingParams
from nalar.optim.muonclip import MuonClip
from nalar.rl.config import CorrectionConfig, ObjectiveConfig
from nalar.rl.correction import correct
from nalar.rl.lessons import Lesson, Minibatch
from nalar.rl.step import teach, update

TRUNCATED = CorrectionConfig(old_logprobs="trainer", weights="truncate", cap=2.0)
MASKED = CorrectionConfig(old_logprobs="trainer", weights="mask", cap=2.0, floor=0.5)


def corrected(make_rollout, ratios, config):
    """Responses whose tokens the trainer finds so many times as likely as the sampler did."""
    taught = [Lesson(make_rollout([1], [2] * len(each)), 1.0) for each in ratios]
    trainer = [torch.tensor([-1 + math.log(ratio) for ratio in each]) for each in ratios]
    return correct(taught, trainer, config)


def test_a_weight_for_each_token_held_below_the_cap(make_rollout):
    """Two tokens of six are above 2; the mean of 1, 3, 0.25, 8, 0.5 and 1.25 is 14 / 6."""
    taught, mismatch = corrected(make_rollout, [[1, 3], [0.25, 8, 0.5, 1.25]], TRUNCATED)
    assert_close(taught[0].weights_N, torch.tensor([1.0, 2.0]))
    assert_close(taught[1].weights_N, torch.tensor([0.25, 2.0, 0.5, 1.25]))
    assert [one.num_left_out for one in taught] == [0, 0]
    assert mismatch.held_frac == pytest.approx(2 / 6)
    assert mismatch.mean_weight == pytest.approx(14 / 6)


def test_what_lies_outside_of_the_band_is_left_out(make_rollout, rl_config):
    taught, mismatch = corrected(make_rollout, [[1, 3], [0.25, 8, 0.75, 1.25]], MASKED)
    assert_close(taught[0].weights_N, torch.tensor([1.0, 0.0]))
    assert_close(taught[1].weights_N, torch.tensor([0.0, 0.0, 0.75, 1.25]))
    assert [one.num_left_out for one in taught] == [1, 2]
    assert [one.num_counted for one in taught] == [1, 2]
    assert mismatch.held_frac == pytest.approx(3 / 6)
    # out of the denominators too: three tokens are left, of two responses
    share = Minibatch(tuple(taught), num_groups=1)
    assert share.denominator(rl_config()) == 3
    by_response = ObjectiveConfig(aggregation="sequence_mean")
    assert share.denominator(rl_config(objective=by_response)) == 2


def test_a_weight_for_a_whole_response_is_the_product_over_its_tokens(make_rollout):
    """2 x 0.75 is 1.5, within; 0.5 x 0.5 is 0.25, below."""
    config = MASKED.model_copy(update={"level": "sequence"})
    taught, mismatch = corrected(make_rollout, [[2, 0.75], [0.5, 0.5]], config)
    assert_close(taught[0].weights_N, torch.tensor([1.5, 1.5]))
    assert taught[1].weights_N.tolist() == [0.0, 0.0]
    assert taught[1].num_counted == 0
    assert mismatch.mean_weight == pytest.approx((1.5 + 0.25) / 2)


def test_the_mismatch_is_reported_where_nothing_is_weighted(make_rollout):
    """Ratios of 2 and 1: (2 - log 2 - 1) / 2 nats, and a root mean square of log 2 / sqrt 2."""
    config = CorrectionConfig(old_logprobs="trainer")
    [taught], mismatch = corrected(make_rollout, [[2, 1]], config)
    assert taught.weights_N is None
    assert_close(taught.old_logprobs_N, torch.tensor([-1 + math.log(2), -1.0]))
    assert mismatch.kl == pytest.approx((1 - math.log(2)) / 2)
    assert mismatch.log_ratio_rms == pytest.approx(math.log(2) / 2**0.5)
    assert mismatch.mean_weight is mismatch.held_frac is None


@pytest.mark.parametrize("config", [TRUNCATED, MASKED])
def test_where_trainer_and_sampler_agree_nothing_is_corrected(make_rollout, config):
    [taught], mismatch = corrected(make_rollout, [[1, 1, 1]], config)
    assert_close(taught.weights_N, torch.ones(3))
    assert mismatch.held_frac == taught.num_left_out == 0
    assert mismatch.kl == pytest.approx(0, abs=1e-7)


PAID = {(1,): 7, (2,): 4}


class Bandit:
    """One token, twelve arms, one of them paid for each of two prompts; the sampler need not be the policy."""

    def __init__(self, model, config, make_rollout):
        self.model, self.sampler = deepcopy(model), deepcopy(model)
        self.config, self.make_rollout = config, make_rollout
        self.optimizer = MuonClip(self.model.named_parameters(), config.optim)
        self.engine = Engine(self.sampler, EngineConfig(max_model_len=8))
        self.noise, self.gen = random.Random(0), torch.Generator().manual_seed(0)
        self.mismatch = None

    @torch.no_grad()
    def follow(self, step, shift):
        """The sampler gets the policy's weights, off by so many of their deviations."""
        self.sampler.load_state_dict(self.model.state_dict())
        for p in self.sampler.parameters() if shift else ():
            p.add_(shift * p.std() * torch.randn(p.shape, generator=self.gen))
        self.engine.load(self.sampler.state_dict(), version=step)

    def groups(self, step, noise):
        requests = [
            Request(prompt, SamplingParams(n=24, max_tokens=1, seed=1000 * step + i))
            for i, prompt in enumerate(PAID)
        ]
        return [
            [
                self.make_rollout(
                    request.prompt_ids,
                    found.token_ids,
                    logprobs=[x + noise * self.noise.gauss(0, 1) for x in found.logprobs],
                    reward=float(found.token_ids[0] == PAID[request.prompt_ids]),
                )
                for found in completions
            ]
            for request, completions in zip(requests, self.engine.generate(requests), strict=True)
        ]

    def learn(self, steps, *, shift=0.0, noise=0.0):
        """The mean probability of the paid arms after so many updates."""
        for step in range(steps):
            self.follow(step, shift)
            [share], self.mismatch = teach(self.model, self.groups(step, noise), self.config)
            update(self.model, self.optimizer, share, self.config, lr_factor=1.0)
        with torch.no_grad():
            found = [
                self.model.logits(self.model(torch.tensor([prompt])).states[0, -1]).softmax(-1)[arm]
                for prompt, arm in PAID.items()
            ]
        return float(sum(found)) / len(found)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("wrong", "correction", "least"),
    [
        ({"noise": 2.0}, MASKED, 0.75),  # recorded numbers that are not those of the draw
        ({"shift": 1.0}, TRUNCATED, 0.85),  # another policy draws, and says so truly
    ],
    ids=["noisy logprobs", "shifted weights"],
)
def test_correction_wins_back_what_a_wrong_sampler_costs(
    toy_model, make_rollout, rl_config, wrong, correction, least
):
    """16 updates, after which the paid arms have 95% where nothing is wrong."""
    plain = Bandit(toy_model, rl_config(minibatches=1), make_rollout).learn(16, **wrong)
    assert plain < 0.75
    bandit = Bandit(toy_model, rl_config(correction=correction, minibatches=1), make_rollout)
    reached = bandit.learn(16, **wrong)
    assert reached > max(least, plain + 0.08)
    assert bandit.mismatch.kl > 0.05


def test_on_a_right_sampler_correction_costs_nothing(toy_model, make_rollout, rl_config):
    reached = {}
    for name, correction in (("none", CorrectionConfig()), ("weights", TRUNCATED)):
        bandit = Bandit(toy_model, rl_config(correction=correction, minibatches=1), make_rollout)
        reached[name] = bandit.learn(8)
    assert reached["weights"] == pytest.approx(reached["none"], abs=1e-3)
    assert bandit.mismatch.mean_weight == pytest.approx(1, abs=1e-5)
    assert bandit.mismatch.held_frac == 0
