"""The recipes of the pipeline are whole: every stage resolves, is priced, and has R1's own figures where it says so."""

import pytest

from nalar.pipeline.r1_config import stage_config, taught_switch
from nalar.pipeline.r1_forecast import forecast_r1
from nalar.recipes.r1 import R1_RECIPES


@pytest.fixture(scope="module", params=R1_RECIPES)
def config(request):
    found = R1_RECIPES[request.param]()
    assert found.recipe == request.param
    return found


@pytest.fixture(scope="module")
def literal():
    return R1_RECIPES["r1-literal"]()


def test_every_stage_resolves(config):
    for stage in config.stages:
        own = stage_config(config, stage, lambda name: f"/{name}")
        assert type(own) is type(config.settings(stage)) and own.device == config.device


def test_every_stage_is_priced(config):
    if config.recipe == "r1-from-hf":
        config = config.model_copy(update={"base": "qwen3-0.6b"})
    plan = forecast_r1(config)
    assert [stage.name for stage in plan.stages] == [*config.stages, "measure"]
    assert all(stage.wall_s > 0 and stage.usd > 0 for stage in plan.stages)


def test_the_small_ones_fit_their_time():
    plan = forecast_r1(R1_RECIPES["r1-cpu"]())
    assert plan.wall_s < 25 * 60
    assert forecast_r1(R1_RECIPES["r1-tiny"]()).wall_s < 60


def test_thinking_off_is_taught_from_rejection_sampling_on():
    config = R1_RECIPES["r1-cpu"]()
    taught = [name for name in config.stages if taught_switch(config, name)]
    assert {"sft", "rl2", "distil"} <= set(taught)
    assert not {"pretrain", "zero", "cold_start", "rl1", "student"} & set(taught)


def test_the_literal_one_has_the_published_figures(literal):
    zero, rl1, rl2 = literal.zero.rl, literal.rl1.rl, literal.rl2.rl
    assert zero.steps * 16 == 10_400
    for rl in (zero, rl1, rl2):
        assert (rl.lr, rl.kl.coef, rl.group_size, rl.max_tokens) == (3e-6, 0.001, 16, 32_768)
        assert rl.prompts_per_step * rl.group_size == 8192 and rl.minibatches == 16
    assert (zero.temperature, rl1.temperature, rl2.temperature) == (1.0, 1.0, 0.7)
    assert (rl2.steps, rl2.reward.model_rewards_last_steps) == (1_700 // 16, 400 // 16)
    assert rl1.reward.language == rl2.reward.language == 1.0
    sft = literal.sft
    assert (sft.epochs, sft.lr, sft.packing.document_tokens) == (2, 5e-6, 32_768)
    assert (sft.schedule.shape, sft.schedule.final_lr_frac) == ("cosine", 0.1)
    assert sft.packing.step_tokens == 64 * 5_355
    assert (literal.preference_model.pairs, literal.safety_model.pairs) == (66_000, 106_000)
    assert literal.preference_model.pairs_per_step == 256
    assert literal.distil.lr == 1e-4


def test_the_literal_ones_rate_of_sampling_is_that_which_gives_the_reported_hours(literal):
    stages = {stage.name: stage for stage in forecast_r1(literal).stages}
    hours = stages["zero"].wall_s / 3600 * 512
    assert hours == pytest.approx(101_000, rel=0.02)
    assert stages["zero"].usd == pytest.approx(202_000, rel=0.02)


def test_no_recipe_learns_from_another_model(config):
    for stage in ("cold_start_data", "rejection_sampling"):
        settings = config.settings(stage)
        assert settings.rewrite in (None, "rule") and not settings.files
