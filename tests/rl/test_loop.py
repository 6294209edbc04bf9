"""What a step reports, and which policy sampled it."""

from dataclasses import replace
from statistics import fmean

import pytest
import torch

from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.recipes.zero import zero_cpu
from nalar.rl import loop as loop_module
from nalar.rl import rollout as rollout_module
from nalar.rl.config import (
    AdvantageConfig,
    CorrectionConfig,
    CurriculumConfig,
    KLConfig,
    ObjectiveConfig,
)
from nalar.rl.group import Carried
from nalar.rl.loop import train_rl
from nalar.rl.reference import Reference
from nalar.rl.rollout import draw_problems
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.countdown import Countdown
from nalar.tasks.registry import open_task


@pytest.fixture
def graded(monkeypatch):
    """Every second response to any problem is paid, so that an untrained model has something to learn."""
    count = iter(range(10**6))
    monkeypatch.setattr(
        rollout_module, "totals", lambda parts: [float(next(count) % 2) for _ in parts]
    )


@pytest.fixture
def train(tokenizer, rl_config):
    """A few steps of a small model; returns it with what every step reported."""

    def run(*, first_step=0, steps=3, stop_after=None, tasks=None, carried=None, **changes):
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "kv_lora_rank": 16}
        model = Transformer(zero_cpu().model.model_copy(update=shape))
        model.initialize(seed=0)
        settings = {"steps": steps, "prompts_per_step": 4, "group_size": 4, "max_tokens": 12}
        config = rl_config(**(settings | changes))
        seen = []
        done = train_rl(
            model,
            MuonClip(model.named_parameters(), config.optim),
            Engine(model, EngineConfig(max_model_len=64)),
            tokenizer,
            tasks or [Countdown(), ChainSum()],
            config,
            seed=3,
            first_step=first_step,
            on_step=lambda progress, groups: seen.append((progress, groups)),
            should_stop=lambda: stop_after is not None and len(seen) >= stop_after,
            reference=None if config.kl.coef is None else Reference(model),
            carried=carried,
        )
        return model, done, seen

    return run


def test_steps_are_counted_and_a_stop_is_heard_between_them(graded, train):
    assert train(steps=3)[1] == 3
    _, done, seen = train(steps=3, stop_after=2)
    assert done == 2
    assert [progress.step for progress, _ in seen] == [1, 2]
    assert train(steps=3, stop_after=0)[1:] == (0, [])


@pytest.mark.parametrize("first_step", [0, 5])
def test_samples_carry_the_version_of_the_policy_that_drew_them(graded, train, first_step):
    _, _, seen = train(first_step=first_step, steps=first_step + 3)
    versions = [
        {v for group in groups for r in group for v in r.response.versions} for _, groups in seen
    ]
    assert versions == [{first_step}, {first_step + 1}, {first_step + 2}]


def test_every_step_samples_from_the_weights_that_the_one_before_left(graded, train):
    """The first update of each step is on policy; with a stale sampler it would not be."""
    _, _, seen = train(steps=3)
    assert all(progress.first_log_ratio_rms < 1e-5 for progress, _ in seen)
    _, _, once = train(steps=3, minibatches=1)
    assert all(progress.first_log_ratio_rms < 1e-5 for progress, _ in once)


def test_a_step_reports_what_its_samples_say(graded, train):
    _, _, seen = train(steps=1)
    ((progress, groups),) = seen
    flat = [r for group in groups for r in group]
    assert len(flat) == 16
    assert progress.reward == 0.5
    assert progress.sampled_tokens == sum(len(r.response.token_ids) for r in flat)
    assert progress.prompt_tokens == sum(len(group[0].prompt_ids) for group in groups)
    assert progress.truncated_frac == fmean(r.response.finish_reason == "length" for r in flat)
    assert progress.silent_groups == 0
    assert progress.trained_tokens == progress.sampled_tokens
    assert set(progress.accuracy) == set(progress.response_tokens) == {"countdown", "chain_sum"}
    for task, mean in progress.response_tokens.items():
        own = [len(r.response.token_ids) for r in flat if r.problem.task == task]
        assert mean == fmean(own)
    assert 0 < progress.entropy < 6
    assert progress.grad_norm > 0


def test_experts_that_sat_through_every_update_of_a_step_are_named(graded, train, monkeypatch):
    real, idle = loop_module.update, iter([((0, 1), (0, 2)), ((0, 2), (1, 0))])

    def update(*args, **settings):
        metrics = real(*args, **settings)
        return replace(metrics, step=replace(metrics.step, idle=next(idle), max_load_frac=2.5))

    monkeypatch.setattr(loop_module, "update", update)
    progress = train(steps=1, minibatches=2)[2][0][0]
    assert (progress.idle, progress.idle_experts) == (((0, 2),), 1)
    assert progress.max_load_frac == 2.5


def test_nothing_moves_where_no_group_has_anything_to_say(train, monkeypatch):
    monkeypatch.setattr(rollout_module, "totals", lambda parts: [0.1] * len(parts))
    before, _, _ = train(steps=0 + 1, stop_after=0)
    after, _, seen = train(steps=2)
    assert all(
        torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)
    )
    for progress, _ in seen:
        assert progress.silent_groups == 4
        assert progress.trained_tokens == 0
        assert progress.entropy is progress.grad_norm is progress.first_log_ratio_rms is None


def test_the_reference_is_the_policy_that_a_refresh_found(graded, train):
    """One update a step: the policy has moved away by one step or by all, and by nothing where it was just renewed."""
    settings = {"steps": 3, "minibatches": 1, "temperature": 0.8}
    _, _, still = train(kl=KLConfig(coef=0.1), **settings)
    _, _, renewed = train(kl=KLConfig(coef=0.1, refresh_every_steps=1), **settings)
    apart = [progress.reference_kl for progress, _ in still]
    assert apart[0] == 0 < apart[1] < apart[2]
    assert [progress.reference_kl for progress, _ in renewed] == [0, 0, 0]
    assert [progress.loss["kl"] for progress, _ in still] == pytest.approx([0.1 * x for x in apart])


def test_a_step_says_what_is_in_its_loss(graded, train):
    objective = ObjectiveConfig(entropy_coef=0.01)
    _, _, seen = train(steps=2, objective=objective)
    for progress, _ in seen:
        assert set(progress.loss) == {"policy", "entropy"}
        assert progress.loss["entropy"] == pytest.approx(-0.01 * progress.entropy)
        assert progress.counted_tokens == progress.trained_tokens
        assert progress.share_sum == pytest.approx(1)
        assert progress.denominator == progress.trained_tokens / 2  # two updates
        assert progress.clipped_frac == progress.clipped_high_frac + progress.clipped_low_frac
        assert progress.reference_kl is progress.mean_weight is progress.sampler_kl is None


def test_a_step_says_how_far_sampler_and_trainer_are_apart(graded, train):
    """Rounding alone, and so nothing to correct; the objective's own ratios begin at 1 to the bit."""
    correction = CorrectionConfig(old_logprobs="trainer", weights="truncate")
    _, _, seen = train(steps=2, correction=correction)
    for progress, _ in seen:
        assert 0 < progress.first_log_ratio_rms < 1e-5
        assert abs(progress.sampler_kl) < 1e-6
        assert progress.mean_weight == pytest.approx(1, abs=1e-5)
        assert progress.held_frac == 0


@pytest.mark.parametrize(
    "parts",
    [
        {"objective": ObjectiveConfig(name="gspo", clip_low=3e-4, clip_high=4e-4)},
        {"objective": ObjectiveConfig(name="cispo", clip_low=None, clip_high=4.0)},
        {"advantage": AdvantageConfig(name="reinforce_pp")},
    ],
)
def test_other_algorithms_move_the_policy_too(graded, train, parts):
    model, _, seen = train(steps=1, **parts)
    assert seen[0][0].grad_norm > 0
    still, _, _ = train(steps=1, stop_after=0)
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), still.parameters(), strict=True)
    )


LEVELS = ("min_terms=2,max_terms=2", "min_terms=3,max_terms=3", "min_terms=4,max_terms=4")


@pytest.fixture
def leveled():
    return open_task("chain_sum,min_terms=2..4,max_terms=2..4", at="test")


def problems(seen):
    """What each step drew, in its order."""
    return [[group[0].problem for group in groups] for _, groups in seen]


def test_levels_that_are_solved_by_half_are_drawn_and_every_group_counts(train, leveled):
    never, half, always = (0.0, 40.0), (20.0, 40.0), (40.0, 40.0)
    carried = Carried(levels={"chain_sum": dict(zip(LEVELS, (never, half, always), strict=True))})
    curriculum = CurriculumConfig(focus=2.0, explore_frac=0.01, memory_problems=1e6)
    _, _, seen = train(tasks=[leveled], carried=carried, curriculum=curriculum, steps=2)
    drawn = [problem.level for step in problems(seen) for problem in step]
    assert drawn == [LEVELS[1]] * 8
    solved, tried = carried.levels["chain_sum"][LEVELS[1]]
    right = [r.correct for _, groups in seen for group in groups for r in group]
    assert tried == pytest.approx(48, abs=1e-3)
    assert solved == pytest.approx(20 + sum(right) / 4, abs=1e-3)
    assert seen[0][0].level_frac == {f"chain_sum,{LEVELS[1]}": 1.0}
    assert seen[0][0].level_accuracy == {f"chain_sum,{LEVELS[1]}": fmean(right[:16])}


def test_without_a_focus_problems_depend_on_seed_and_step_alone(train, leveled):
    carried = Carried()
    _, _, seen = train(tasks=[leveled], carried=carried, steps=2)
    assert problems(seen) == [draw_problems([leveled], 4, 3, step) for step in range(2)]
    assert carried == Carried()
