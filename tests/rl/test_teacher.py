"""On-policy distillation: what a token gains, where a step leads, and a student that comes near its teacher."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from nalar.config import ConfigError
from nalar.data.packing import Packing
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.recipes.zero import zero_cpu
from nalar.rl.batches import policy_batches
from nalar.rl.config import (
    CorrectionConfig,
    DistilConfig,
    ObjectiveConfig,
    RewardConfig,
    RolloutConfig,
)
from nalar.rl.lessons import Lesson, Minibatch
from nalar.rl.loop import train_rl
from nalar.rl.step import teach, update
from nalar.rl.teacher import taught
from nalar.tasks.chain_sum import ChainSum
from nalar.train.pretrain import on_device
from nalar.train.step import pretrain_step

CPU = torch.device("cpu")
DISTIL = DistilConfig(teacher="a folder", coef=2.0)
UNCLIPPED = ObjectiveConfig(clip_low=None, clip_high=None)


@pytest.fixture
def toy_teacher(toy_model) -> Transformer:
    """Another model of the same shape."""
    other = Transformer(toy_model.config)
    other.initialize(seed=5)
    return other.requires_grad_(False)


def optimizer_of(model, config):
    return MuonClip(model.named_parameters(), config.optim)


def test_what_a_token_gains_by_hand(make_rollout):
    rollout = make_rollout([3], [4, 7, 5], logprobs=[-1.0, -9.0, -2.0], drawn=[True, False, True])
    [lesson] = taught([Lesson(rollout, 0.5)], [torch.tensor([-0.5, -3.0])], DISTIL)
    assert lesson.gain_N.tolist() == [1.0, -2.0]  # 2 * (-0.5 - -1), 2 * (-3 - -2)
    [batch] = policy_batches([lesson], max_tokens=64, device=CPU)
    assert batch.advantages_N.tolist() == [1.5, -1.5]
    assert batch.teacher_N.tolist() == [-0.5, -3.0]


def test_tokens_of_a_batch_keep_their_own_gains(make_rollout):
    """Lessons are sorted by length; what a teacher says goes along."""
    rollouts = [make_rollout([1], [2] * n, logprobs=[-float(n)] * n) for n in (3, 1, 2)]
    said = [torch.zeros(n) for n in (3, 1, 2)]
    lessons = taught([Lesson(r, 0.0) for r in rollouts], said, DistilConfig(teacher="x"))
    [batch] = policy_batches(lessons, max_tokens=64, device=CPU)
    assert batch.advantages_N.tolist() == [1.0, 2.0, 2.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", ["clip", "cispo"])
def test_a_step_goes_down_the_gradient_of_the_reverse_kl(
    name, temperature, toy_model, toy_teacher, make_rollout, rl_config
):
    """Exactly: over all tokens that could be drawn after a prompt, each at its probability."""
    prompt, vocabulary = [3, 1, 7], range(12)

    def distribution(model):
        return (
            model.logits(model(torch.tensor([prompt])).states[0, -1]) / temperature
        ).log_softmax(-1)

    student_V, teacher_V = distribution(toy_model), distribution(toy_teacher).detach()
    (student_V.exp() * (student_V - teacher_V)).sum().backward()
    want = {n: p.grad.clone() for n, p in toy_model.named_parameters() if p.grad is not None}
    drawn = [make_rollout(prompt, [v], logprobs=[float(student_V[v].detach())]) for v in vocabulary]
    config = rl_config(
        distil=DistilConfig(teacher="x", coef=1.0),
        temperature=temperature,
        objective=ObjectiveConfig(name=name, clip_low=None, clip_high=None),
        minibatches=1,
    )
    [share], _ = teach(toy_model, [drawn], config, teacher=toy_teacher)
    weighed = tuple(
        replace(lesson, weights_N=student_V[v].detach().exp()[None])
        for v, lesson in enumerate(share.lessons)
    )
    metrics = update(
        toy_model,
        optimizer_of(toy_model, config),
        Minibatch(weighed, share.num_groups),
        config,
        lr_factor=1e-9,
    )
    assert metrics.tokens == metrics.denominator == 12
    norm = torch.stack([g.norm() for g in want.values()]).norm()
    for parameter, gradient in want.items():
        got = toy_model.get_parameter(parameter).grad * metrics.denominator
        assert (got - gradient).norm() < 1e-4 * norm, parameter


def test_the_gradient_is_that_of_the_estimator(toy_model, toy_teacher, make_rollout, rl_config):
    """Advantages by reward and by teacher together, over responses of several tokens: against autograd."""
    rollouts = [
        make_rollout([3, 1], [4, 7, 2], logprobs=[-1.0, -2.0, -0.5], reward=1.0),
        make_rollout([3, 1], [9, 5], logprobs=[-2.5, -1.5], reward=0.0),
    ]
    config = rl_config(
        distil=DISTIL,
        objective=UNCLIPPED,
        minibatches=1,
        correction=CorrectionConfig(old_logprobs="trainer"),
    )

    def logprobs(model, rollout):
        ids = torch.tensor([*rollout.prompt_ids, *rollout.response.token_ids])
        rows = model.logits(model(ids[None, :-1]).states)[0].log_softmax(-1)
        start = len(rollout.prompt_ids)
        return rows[start - 1 :].gather(-1, ids[start:, None])[:, 0]

    [share], _ = teach(toy_model, [rollouts], config, teacher=toy_teacher)
    advantages = [lesson.advantage for lesson in share.lessons]
    assert advantages[0] == -advantages[1] > 0.5
    loss = torch.zeros(())
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        drawn = torch.tensor(rollout.response.logprobs)
        gain = 2.0 * (logprobs(toy_teacher, rollout) - drawn)
        loss = loss - ((advantage + gain) * logprobs(toy_model, rollout)).sum() / 5
    loss.backward()
    want = {n: p.grad.clone() for n, p in toy_model.named_parameters()}
    update(toy_model, optimizer_of(toy_model, config), share, config, lr_factor=1e-9)
    for name, parameter in toy_model.named_parameters():
        assert_close(parameter.grad, want[name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_group_of_equal_rewards_is_taught_by_the_teacher_alone(
    toy_model, toy_teacher, make_rollout, rl_config
):
    silent = [make_rollout([1], [2, 3], reward=1.0), make_rollout([1], [4], reward=1.0)]
    assert teach(toy_model, [silent], rl_config(minibatches=1))[0][0].lessons == ()
    config = rl_config(distil=DISTIL, minibatches=1, objective=UNCLIPPED)
    [share], _ = teach(toy_model, [silent], config, teacher=toy_teacher)
    assert [lesson.advantage for lesson in share.lessons] == [0.0, 0.0]
    assert all(bool(lesson.gain_N.any()) for lesson in share.lessons)
    metrics = update(toy_model, optimizer_of(toy_model, config), share, config, lr_factor=1.0)
    assert metrics.terms["policy"] != 0 and metrics.step.grad_norm > 0
    assert metrics.teacher_kl > 0 and metrics.kl is None
    assert metrics.tokens == metrics.counted_tokens == 3


def test_a_teacher_that_is_the_student_teaches_nothing(toy_model, make_rollout, rl_config):
    ids = [2, 3, 4]
    rows = toy_model.logits(toy_model(torch.tensor([[1, *ids[:-1]]])).states)[0].log_softmax(-1)
    drawn = [float(rows[i, token].detach()) for i, token in enumerate(ids)]
    config = rl_config(distil=DISTIL, minibatches=1)
    group = [make_rollout([1], ids, logprobs=drawn)] * 2
    [share], _ = teach(toy_model, [group], config, teacher=toy_model)
    assert all(lesson.gain_N.abs().max() < 1e-5 for lesson in share.lessons)
    metrics = update(toy_model, optimizer_of(toy_model, config), share, config, lr_factor=1e-9)
    assert metrics.teacher_kl < 1e-9


def test_what_cannot_work_is_refused(toy_model, make_rollout, rl_config):
    with pytest.raises(ValueError, match="there is no teacher"):
        teach(toy_model, [[make_rollout([1], [2])] * 2], rl_config(distil=DISTIL, minibatches=1))
    with pytest.raises(ConfigError, match="max_refills"):
        rl_config(distil=DISTIL, rollout=RolloutConfig(max_refills=2))
    for coef in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="coef"):
            DistilConfig(teacher="x", coef=coef)


@pytest.fixture
def make_small():
    def make(seed: int) -> Transformer:
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "kv_lora_rank": 16}
        model = Transformer(zero_cpu().model.model_copy(update=shape))
        model.initialize(seed)
        return model

    return make


@pytest.fixture
def trained_teacher(make_small, tokenizer) -> Transformer:
    """A few steps on the demo's corpus: it knows which tokens are frequent."""
    recipe, model = zero_cpu(), make_small(1)
    optimizer = MuonClip(model.named_parameters(), recipe.pretrain.optim)
    packing = recipe.packing.model_copy(update={"step_tokens": 1024})
    batches = Packing(tokenizer, recipe.corpus, packing, seed=1)
    for step in range(20):
        batch = on_device(batches.batch(step), CPU)
        pretrain_step(model, optimizer, [batch], lr_factor=1.0, balance_speed=0.01)
    return model.requires_grad_(False)


@pytest.mark.slow
def test_a_student_comes_near_its_teacher_without_any_reward(
    make_small, trained_teacher, tokenizer, rl_config
):
    """Two dozen steps from random weights: the divergence falls several-fold."""
    student = make_small(0)
    config = rl_config(
        steps=22,
        lr=2e-2,
        minibatches=1,
        prompts_per_step=8,
        group_size=8,
        max_tokens=8,
        distil=DistilConfig(teacher="x"),
        reward=RewardConfig(correct=0.0, well_formed=0.0),
    )
    seen = []
    train_rl(
        student,
        optimizer_of(student, config),
        Engine(student, EngineConfig(max_model_len=64)),
        tokenizer,
        [ChainSum()],
        config,
        seed=3,
        first_step=0,
        on_step=lambda progress, groups: seen.append(progress),
        should_stop=lambda: False,
        teacher=trained_teacher,
    )
    kls = [progress.teacher_kl for progress in seen]
    assert sum(kls[-4:]) < sum(kls[:4]) / 3, kls
    assert all(p.reward == 0 and p.silent_groups == 8 and p.trained_tokens > 0 for p in seen)
