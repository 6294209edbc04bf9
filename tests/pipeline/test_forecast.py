import pytest

from nalar.pipeline.forecast import forecast
from nalar.plan.model import count_parameters
from nalar.recipes.registry import RECIPES
from nalar.rl.config import KLConfig


@pytest.mark.parametrize("name", RECIPES)
def test_a_forecast_adds_up(name):
    config = RECIPES[name]()
    plan = forecast(config)
    assert plan.total_params == count_parameters(config.model).total_params
    assert [s.name for s in plan.stages] == ["pretrain", "evaluate_base", "rl", "evaluate_final"]
    assert plan.tokens == sum(s.tokens for s in plan.stages)
    assert plan.stages[0].tokens == config.pretrain.slice_tokens * config.pretrain.max_slices
    assert plan.usd == pytest.approx(config.price.usd(plan.wall_s))
    assert plan.memory_bytes < 4e9


def test_twice_the_steps_of_rl_take_twice_as_much():
    config = RECIPES["zero-cpu"]()
    longer = config.model_copy(
        update={"rl": config.rl.model_copy(update={"steps": 2 * config.rl.steps})}
    )
    once, twice = forecast(config).stages[2], forecast(longer).stages[2]
    assert twice.tokens == 2 * once.tokens
    assert twice.flops == pytest.approx(2 * once.flops)


def test_checkpoints_count_on_the_disk_and_their_copy_in_memory():
    config = RECIPES["zero-cpu"]()

    def plan(**changes):
        keeping = config.checkpoint.model_copy(update=changes)
        return forecast(config.model_copy(update={"checkpoint": keeping}))

    one = 3 * 4 * count_parameters(config.model).total_params
    assert plan(keep=5).disk_bytes == plan(keep=2).disk_bytes + 6 * one  # in both stages
    slices = config.pretrain.max_slices
    assert plan(keep_slices=False).disk_bytes == plan().disk_bytes - slices * one
    assert plan(background=False).memory_bytes == plan().memory_bytes - one // 3


def test_bfloat16_halves_weights_and_adds_masters_and_a_gpu_has_its_own_memory():
    config = RECIPES["zero-cpu"]()
    count = count_parameters(config.model).total_params
    rounded = config.model_copy(update={"dtype": "bfloat16"})
    checkpoints = config.pretrain.max_slices + 2 * config.checkpoint.keep + 1
    added = forecast(rounded).disk_bytes - forecast(config).disk_bytes
    assert added == checkpoints * (4 - 2) * count
    on_gpu = forecast(rounded.model_copy(update={"device": "cuda"}))
    # Its own kernels take less than what the same numbers take on a CPU.
    on_cpu = forecast(rounded).memory_bytes
    assert 0 < on_gpu.gpu_bytes < on_cpu - on_gpu.memory_bytes < on_cpu
    assert forecast(rounded).gpu_bytes == 0
    assert "GPU" in on_gpu.assumptions[0] and "GPU" not in forecast(config).assumptions[0]


def test_a_reference_costs_a_copy_of_the_weights_three_times_and_a_forward_pass():
    """In memory, in the copy that is being saved, and in every checkpoint."""
    config = RECIPES["zero-cpu"]()
    pulled = config.model_copy(
        update={"rl": config.rl.model_copy(update={"kl": KLConfig(coef=0.001)})}
    )
    plain, with_it = forecast(config), forecast(pulled)
    weights = 4 * plain.total_params
    assert with_it.memory_bytes == plain.memory_bytes + 2 * weights
    checkpoints = config.pretrain.max_slices + 2 * config.checkpoint.keep + 1
    assert with_it.disk_bytes == plain.disk_bytes + checkpoints * weights
    sampling_and_training = with_it.stages[2].flops / plain.stages[2].flops
    assert 1.2 < sampling_and_training < 1.3  # one forward pass more than four, sampling included
