"""Samples that are replied to: what is given is read and not learned, and randomness goes on behind it."""

import pytest
import torch

from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import SamplingParams
from nalar.evals.protocol import sample_problems
from nalar.model.transformer import Transformer
from nalar.recipes.zero import zero_cpu
from nalar.rl.batches import policy_batches
from nalar.rl.collector import collect
from nalar.rl.group import Group
from nalar.rl.lessons import Lesson
from nalar.rl.response import NOTHING, Response
from nalar.rl.rollout import draw_problems
from nalar.tasks.chain_sum import ChainSum

GIVEN = (70, 71, 72)
PROBLEMS = draw_problems([ChainSum()], 2, 0, 0)
LIMITS = EngineConfig(max_model_len=96, max_num_seqs=6, deterministic=True)


class Echo:
    """Replies so many times, and notes what it was told."""

    def __init__(self, replies, given=GIVEN):
        self.replies, self.given = replies, given
        self.heard = []

    def reply(self, token_ids):
        self.heard.append(tuple(token_ids))
        # By nothing but the ids, as it must be.
        done = sum(
            tuple(token_ids[i : i + len(self.given)]) == self.given for i in range(len(token_ids))
        )
        return self.given if done < self.replies else None


@pytest.fixture
def model(tokenizer):
    """Its samples end early."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "kv_lora_rank": 16}
    model = Transformer(zero_cpu().model.model_copy(update=shape))
    model.initialize(seed=1)
    with torch.no_grad():
        model.model.norm.weight.mul_(20)
        model.lm_head.weight[tokenizer.end_id] *= 3
    return model


@pytest.fixture
def sampled(model, tokenizer, rl_config):
    """Samples as RL draws them, each in an environment."""

    def sample(make_environment=None, max_tokens=48):
        engine = Engine(model, LIMITS)
        groups = collect(
            engine,
            tokenizer,
            [ChainSum()],
            PROBLEMS,
            rl_config(group_size=8, max_tokens=max_tokens),
            seed=3,
            make_environment=make_environment,
        )
        assert not engine.has_work
        return [r for group in groups for r in group]

    return sample


def test_a_reply_is_appended_and_nobody_drew_it(sampled):
    made = []

    def make(problem):
        made.append((problem, Echo(2)))
        return made[-1][1]

    plain, rollouts = sampled(), sampled(make)
    talked = [r for r in rollouts if not all(r.response.drawn)]
    assert len(talked) >= 4 and len(made) >= len(talked)
    assert {problem.key for problem, _ in made} == {r.problem.key for r in rollouts}
    for r, alone in zip(rollouts, plain, strict=True):
        ids, drawn = r.response.token_ids, r.response.drawn
        first = alone.response.token_ids
        assert ids[: len(first)] == first  # up to the first reply it is the same sample
        if alone.truncated:
            assert r.response == alone.response
            continue
        given = [i for i, own in enumerate(drawn) if not own]
        assert given[:3] == list(range(len(first), len(first) + 3))
        assert [ids[i] for i in given] == list(GIVEN) * (len(given) // 3)
        assert all(r.response.logprobs[i] == 0 for i in given)
        assert all(r.response.logprobs[i] < 0 for i, own in enumerate(drawn) if own)
        assert len(ids) <= 48
        (batch,) = policy_batches([Lesson(r, 1.0)], max_tokens=500, device=torch.device("cpu"))
        assert batch.targets_N.tolist() == [t for t, own in zip(ids, drawn, strict=True) if own]
    finished = [r for r in talked if r.response.finish_reason == "stop"]
    assert finished and all(len(r.response.drawn) - r.response.num_drawn == 6 for r in finished)


def test_an_environment_hears_all_ids_so_far(sampled):
    made = []

    def make(problem):
        made.append(Echo(1))
        return made[-1]

    rollouts = sampled(make)
    told = {ids for environment in made for ids in environment.heard}
    for r in rollouts:
        if r.response.finish_reason == "stop":
            assert r.response.token_ids in told


def test_an_evaluation_draws_what_rl_draws(model, tokenizer, sampled):
    def make(problem):
        return Echo(2)

    params = SamplingParams(n=8, max_tokens=48, seed=3)
    engine = Engine(model, LIMITS)
    measured = sample_problems(
        engine, tokenizer, ChainSum(), PROBLEMS, params, make_environment=make
    )
    rollouts = sampled(make)
    assert sum(not all(r.response.drawn) for r in rollouts) >= 4
    assert [Response.of(one.completion) for group in measured for one in group] == [
        r.response for r in rollouts
    ]


def test_a_reply_that_leaves_no_room_ends_the_response(sampled):
    rollouts = sampled(lambda problem: Echo(1, given=(70,) * 100))
    assert {r.response.finish_reason for r in rollouts} == {"length"}
    assert all(all(r.response.drawn) for r in rollouts)


def test_what_follows_a_reply_repeats_no_stream(sampled):
    """Samples of one group that hear the same go on differently, and so does one sample behind equal replies."""
    rollouts = sampled(lambda problem: Echo(1))
    tails = [
        r.response.token_ids[-r.response.drawn[::-1].index(False) :]
        for r in rollouts
        if False in r.response.drawn and r.response.drawn[-1]
    ]
    assert len(tails) >= 4
    assert len(set(tails)) > 1


def test_samples_with_nothing_yet_are_asked_for_together():
    begun = Response((5,), (-1.0,), (True,), (0,), "abort")
    whole = Response((5,), (-1.0,), (True,), (0,), "stop")

    def runs(*responses):
        group = Group(None, (1,), 0, list(responses), [None] * len(responses))
        return [(run.start, run.stop) for run in group.open_runs()]

    assert runs(*[NOTHING] * 4) == [(0, 4)]
    assert runs(whole, NOTHING, NOTHING, begun, begun, NOTHING) == [(1, 3), (3, 4), (4, 5), (5, 6)]
    assert runs(begun, whole, NOTHING, whole, NOTHING) == [(0, 1), (2, 3), (4, 5)]
    assert runs(whole) == []
