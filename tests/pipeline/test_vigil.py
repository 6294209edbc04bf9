"""Runs that are really broken, each in one way, and the alarm that each sets off; a good run sets off none.

The task: say the letter that the prompt names, out of three. The base does so in half of its responses or so.
"""

import copy
import random
from dataclasses import dataclass, replace

import pytest
import torch

from nalar.data.dialogue import encode_dialogue
from nalar.data.preferences import Answer, scored_ids
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.evals.protocol import evaluate
from nalar.kernels.documents import Documents
from nalar.kernels.logprobs import token_logprobs
from nalar.model.transformer import Transformer
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip
from nalar.pipeline import vigil as vigil_module
from nalar.pipeline.corpus import named_or_learned
from nalar.pipeline.policy import rl_values
from nalar.pipeline.vigil import Vigil
from nalar.recipes.zero import zero_cpu
from nalar.rl import batches as batches_module
from nalar.rl import lessons as lessons_module
from nalar.rl import step as step_module
from nalar.rl.config import AlarmsConfig, KLConfig, RewardConfig, RLConfig
from nalar.rl.loop import train_rl
from nalar.rl.reference import Reference
from nalar.rl.reward_model import RewardModel, with_score_head
from nalar.rl.reward_step import Example, reward_step
from nalar.rl.scorers import Scorers
from nalar.tasks.problem import Problem, Score, distinct, split_of

LETTERS = "abc"


@dataclass(frozen=True)
class Echo:
    """A verifier that a test can break. It is right about problems of the valid split, whatever is broken."""

    swapped: bool = False
    dead: bool = False
    id = "echo"
    searches = is_checkable = is_costly = False

    def draw(self, rng, split):
        while True:
            prompt = f"{rng.choice(LETTERS)}{rng.randrange(1000)}"
            if split_of(prompt) == split:
                return Problem(self.id, prompt, prompt)

    def problems(self, split, n, seed):
        rng = random.Random(seed)
        return distinct(lambda: self.draw(rng, split), n)

    def score(self, problem, answer):
        if split_of(problem.key) == "train":
            if self.dead:
                return Score(False, False, error="the verifier is dead")
            if self.swapped:
                return Score(answer != problem.prompt[0], True)
        return Score(answer == problem.prompt[0], True)


@pytest.fixture(scope="module")
def tokenizer():
    return named_or_learned(zero_cpu())


@pytest.fixture(scope="module")
def base(tokenizer):
    """Has the form, and knows better than it answers."""
    shape = {"num_hidden_layers": 2, "n_routed_experts": 4, "initializer_range": 0.05}
    model = Transformer(zero_cpu().model.model_copy(update=shape))
    model.initialize(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    task, rng = Echo(), random.Random(0)
    for _ in range(100):
        ids, targets, where, lengths = [], [], [], []
        for _ in range(16):
            prompt = task.draw(rng, "train").prompt
            letter = rng.choice([prompt[0], *LETTERS[:2]])
            said = {"role": "assistant", "content": letter, "reasoning_content": "-"}
            asked = {"role": "user", "content": prompt}
            one, own = encode_dialogue(tokenizer, [asked, said])
            where += [len(ids) + i - 1 for i, mine in enumerate(own) if mine]
            targets += [token for token, mine in zip(one, own, strict=True) if mine]
            ids += one
            lengths.append(len(one))
        states = model(torch.tensor(ids), Documents.of(lengths)).states[torch.tensor(where)]
        logprobs, _ = token_logprobs(states, model.head_weight, torch.tensor(targets))
        optimizer.zero_grad()
        (-logprobs.mean()).backward()
        optimizer.step()
    return model


def heard(base, tokenizer, task=None, *, sampled_by=None, steps=24, scorers=None, **changes):
    """Names of the alarms of a run, with the last of its accuracies."""
    task = task or Echo()
    model = copy.deepcopy(base)
    settings = {
        "tasks": ("echo",),
        "prompts_per_step": 8,
        "group_size": 8,
        "max_tokens": 8,
        "lr": 1.5e-3,
        "minibatches": 1,
        "alarms": AlarmsConfig(held_out_every_steps=8, audit_every_steps=8, window_steps=4),
    }
    config = RLConfig(steps=steps, **(settings | changes))
    engine = Engine(sampled_by or model, EngineConfig(max_model_len=64))
    vigil = Vigil(config, model, engine, tokenizer, [task], lambda groups: None)
    alarms, accuracy = [], []

    def on_step(progress, groups):
        values = rl_values(progress) | vigil.look(progress.step, groups)
        alarms.extend(alarm.name for alarm in vigil.see(progress.step, values, None))
        accuracy.append(progress.accuracy["echo"])

    train_rl(
        model,
        MuonClip(model.named_parameters(), config.optim),
        engine,
        tokenizer,
        [task],
        config,
        seed=0,
        first_step=0,
        on_step=on_step,
        should_stop=lambda: vigil.has_enough,
        reference=None if config.kl.coef is None else Reference(model),
        scorers=scorers,
    )
    return alarms, accuracy


def test_a_good_run_learns_and_is_quiet(base, tokenizer):
    alarms, accuracy = heard(base, tokenizer)
    assert accuracy[0] < 0.7 and accuracy[-1] > 0.9
    assert alarms == []


def test_a_reward_for_what_is_wrong(base, tokenizer):
    alarms, _ = heard(base, tokenizer, Echo(swapped=True))
    assert "reward and truth part" in alarms


def test_a_dead_verifier(base, tokenizer):
    alarms, _ = heard(base, tokenizer, Echo(dead=True), steps=6)
    assert alarms == ["verifier fails", "nothing to learn from"]


def test_a_sampler_that_keeps_old_weights(base, tokenizer, monkeypatch):
    def stamp(engine, params, version):
        engine.policy_version = version

    monkeypatch.setattr(Engine, "load", stamp)
    alarms, _ = heard(base, tokenizer, sampled_by=copy.deepcopy(base), steps=6)
    assert alarms == ["sampler and trainer apart"]


def test_a_sampler_that_is_never_told(base, tokenizer, monkeypatch):
    monkeypatch.setattr(Engine, "load", lambda self, params, version: None)
    alarms, _ = heard(base, tokenizer, steps=6)
    assert "stale samples" in alarms


def test_a_mask_that_leaves_the_end_out(base, tokenizer, monkeypatch):
    join = batches_module._join

    def without_ends(lessons, order, device):
        cut = []
        for lesson in lessons:
            response = lesson.rollout.response
            drawn = (*response.drawn[:-1], False)
            rollout = replace(lesson.rollout, response=replace(response, drawn=drawn))
            cut.append(replace(lesson, rollout=rollout))
        return join(cut, order, device)

    monkeypatch.setattr(batches_module, "_join", without_ends)
    alarms, _ = heard(base, tokenizer, steps=4)
    assert alarms == ["wrong mask"]


def test_advantages_that_are_not_finite(base, tokenizer, monkeypatch):
    advantages = lessons_module.advantages
    monkeypatch.setattr(
        lessons_module, "advantages", lambda *args: advantages(*args) * float("inf")
    )
    alarms, _ = heard(base, tokenizer, steps=2)
    assert "not finite" in alarms


def test_a_reference_that_is_not_connected(base, tokenizer, monkeypatch):
    monkeypatch.setattr(step_module, "divergence", lambda a_N, b_N: torch.zeros_like(a_N))
    alarms, _ = heard(base, tokenizer, steps=6, kl=KLConfig(coef=0.1))
    assert alarms == ["a part of the loss is idle"]


def test_a_reference_that_is(base, tokenizer):
    alarms, _ = heard(base, tokenizer, steps=6, kl=KLConfig(coef=0.1))
    assert alarms == []


def test_a_run_can_stop_at_the_first_alarm(base, tokenizer):
    limits = AlarmsConfig(stop=True, held_out_every_steps=None, window_steps=4)
    alarms, accuracy = heard(base, tokenizer, Echo(dead=True), alarms=limits)
    assert alarms == ["verifier fails"] and len(accuracy) == 1


@pytest.mark.parametrize(("frac", "looks"), [(0.0, {"echo"}), (0.2, {"echo", "echo,thinking=off"})])
def test_held_out_problems_are_tried_in_every_way_that_rl_asks(
    base, tokenizer, frac, looks, monkeypatch
):
    asked = []

    def tried(engine, tokenizer, task, problems, config, **_):
        asked.append(config.thinking)
        return evaluate(engine, tokenizer, task, problems[:2], config, seed=0)

    monkeypatch.setattr(vigil_module, "evaluate", tried)
    alarms = AlarmsConfig(held_out_every_steps=1, held_out_k=1, audit_every_steps=None)
    config = RLConfig(steps=1, max_tokens=4, alarms=alarms, no_thinking_frac=frac)
    engine = Engine(base, EngineConfig(max_model_len=64))
    found = Vigil(config, base, engine, tokenizer, [Echo()], lambda groups: None).look(1, [])
    assert {name.partition("/")[2] for name in found} == looks
    assert asked == ["on", "off"][: len(looks)]


@pytest.fixture(scope="module")
def likes_c(base, tokenizer):
    """A preference model as nobody wants it: it has learned to like one letter, whatever was asked."""
    scorer, rng = with_score_head(copy.deepcopy(base), seed=0), random.Random(1)
    optimizer = MuonClip(
        scorer.trained_parameters(ahead=False),
        OptimConfig(name="adamw", lr=5e-3, adamw_lr=5e-3),
    )

    def read(prompt, letter):
        asked = ({"role": "user", "content": prompt},)
        return tuple(scored_ids(tokenizer, asked, Answer(letter), "preference"))

    for _ in range(12):
        prompts = [Echo().draw(rng, "train").prompt for _ in range(8)]
        pairs = [Example(read(p, "c"), read(p, rng.choice("ab"))) for p in prompts]
        reward_step(scorer, optimizer, pairs, lr_factor=1.0)
    return RewardModel(scorer, tokenizer)


@pytest.mark.slow
def test_a_model_that_is_gamed_from_the_first_step_sets_off_the_alarm(base, tokenizer, likes_c):
    """The truth is the task's own, on problems that are not trained on: no model has a part in it."""
    reward = RewardConfig(preference=2.0, preference_model="likes_c")
    scorers = Scorers({"preference": likes_c}, tokenizer)
    alarms, accuracy = heard(base, tokenizer, scorers=scorers, reward=reward)
    assert "reward and truth part" in alarms
    assert accuracy[-1] < 0.5


@pytest.mark.slow
def test_the_same_model_in_the_last_steps_alone_does_not_come_to_it(base, tokenizer, likes_c):
    reward = RewardConfig(preference=2.0, preference_model="likes_c", model_rewards_last_steps=3)
    scorers = Scorers({"preference": likes_c}, tokenizer)
    alarms, accuracy = heard(base, tokenizer, scorers=scorers, reward=reward)
    assert "reward and truth part" not in alarms
    assert accuracy[-1] > 0.8
