"""A pipeline's forecast: its stages' own, added up; on other hardware by its rates."""

import pytest

from nalar.config import UserError
from nalar.pipeline.forecast import TRAIN_FLOPS_PER_S, forecast, forecast_rl
from nalar.pipeline.r1_config import R1Config, stage_config
from nalar.pipeline.r1_forecast import dialogue_tokens, forecast_r1, model_of
from nalar.plan.published import PUBLISHED

TASK = "linear,max_coefficient=5,max_solution=9"


@pytest.fixture
def make(shrunk):
    def make(**changes) -> R1Config:
        evals = {"tasks": (TASK,), "problems": 4, "k": 2, "max_tokens": 24}
        rl = {"rl": {"steps": 3, "tasks": (TASK,), "max_tokens": 24}, "evals": evals}
        zero = shrunk.model_dump(mode="json") | {"threads": 2, "device": "auto", "probe": None}
        data = {"kind": "files", "path": "@rejection_sampling"}
        collect = {"model": "@zero", "tasks": (TASK,), "problems_per_task": 10, "samples": 4}
        settings = {
            "recipe": "r1-test",
            "device": "cpu",
            "pretrain": zero,
            "zero": {"model": "@base"} | rl,
            "rejection_sampling": collect | {"max_tokens": 100, "keep_per_problem": 2},
            "sft": {"model": "@base", "data": data, "epochs": 3, "held_out_frac": 0.0},
            "safety_model": {"kind": "safety", "model": "@sft", "pairs": 10},
            "measure": {"evals": evals},
        }
        return R1Config.model_validate(settings | changes)

    return make


def test_each_stage_costs_what_its_own_run_would(make):
    config = make()
    stages = {stage.name: stage for stage in forecast_r1(config).stages}
    own = stage_config(config, "pretrain", lambda name: name)
    alone = {stage.name: stage for stage in forecast(own).stages}["pretrain"]
    assert stages["pretrain"].flops == pytest.approx(alone.flops)
    assert stages["pretrain"].wall_s == pytest.approx(alone.wall_s)
    own = stage_config(config, "zero", lambda name: name)
    alone = {stage.name: stage for stage in forecast_rl(own, config.pretrain.model).stages}["rl"]
    assert stages["zero"].flops == pytest.approx(alone.flops)
    assert stages["zero"].wall_s == pytest.approx(alone.wall_s)


def test_the_whole_is_the_sum_of_its_stages(make):
    whole = forecast_r1(make())
    assert [stage.name for stage in whole.stages] == [
        *("pretrain", "zero", "rejection_sampling", "sft", "safety_model", "measure")
    ]
    for field in ("tokens", "flops", "wall_s", "usd"):
        total = sum(getattr(stage, field) for stage in whole.stages)
        assert getattr(whole, field) == pytest.approx(total)
        assert all(getattr(stage, field) > 0 for stage in whole.stages)


def test_fine_tuning_counts_on_all_that_may_be_kept(make):
    # 10 problems, 2 kept of each, prompts of 24 tokens and 40% of 100
    assert dialogue_tokens(make(), "sft") == 10 * 2 * (24 + 40)
    stages = {stage.name: stage for stage in forecast_r1(make()).stages}
    assert stages["sft"].tokens == 3 * 10 * 2 * (24 + 40)


def test_other_hardware_changes_time_and_price_alone(make):
    hardware = {
        "name": "a fast one",
        "train_flops_per_s": 1000 * TRAIN_FLOPS_PER_S,
        "sample_flops_per_s": 1e12,
    }
    here, there = forecast_r1(make()), forecast_r1(make(hardware=hardware))
    assert (there.flops, there.tokens) == (pytest.approx(here.flops), here.tokens)
    one, other = here.stages[0], there.stages[0]
    assert other.wall_s == pytest.approx(one.wall_s / 1000)
    assert other.usd == pytest.approx(one.usd / 1000)
    assert any("a fast one" in line for line in there.assumptions)


def test_a_stage_trains_the_model_that_its_references_lead_to(make):
    config = make()
    for stage in ("zero", "sft", "safety_model"):
        assert model_of(config, stage) == config.pretrain.model


def test_a_published_model_is_good_for_a_plan(make):
    config = make(base="deepseek-v3", pretrain=None)
    assert model_of(config, "sft") == PUBLISHED["deepseek-v3"].config
    assert forecast_r1(config).memory_bytes > 10**12
    with pytest.raises(UserError) as told:
        forecast_r1(make(base="nowhere", pretrain=None))
    assert (told.value.at, told.value.hint) == ("base", "--base FOLDER")
