"""What each name stands for, and that a config they gave is as checked as any."""

import pytest

from nalar.rl.config import RewardConfig, RLConfig
from nalar.rl.presets import PRESETS


@pytest.fixture
def own():
    """Fields that no algorithm has a word in."""
    return RLConfig(steps=7, tasks=("countdown",), save_every_steps=3, micro_batch_tokens=77)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_whole_config_and_keeps_what_is_not_its_business(own, name):
    found = PRESETS[name](own)
    assert RLConfig.model_validate(found.model_dump()) == found
    assert (found.tasks, found.save_every_steps, found.micro_batch_tokens) == (
        ("countdown",),
        3,
        77,
    )
    assert found != own
    assert PRESETS[name](found) == found
    if name != "r1-zero-literal":
        assert found.steps == 7


@pytest.mark.parametrize("name", ["r1-zero-literal", "r1-literal"])
def test_r1_in_its_published_numbers(own, name):
    found = PRESETS[name](own)
    assert (found.lr, found.temperature, found.max_tokens) == (3e-6, 1.0, 32_768)
    assert (found.kl.coef, found.group_size) == (0.001, 16)
    assert found.prompts_per_step * found.group_size == 8192
    assert found.prompts_per_step // found.minibatches == 32
    assert found.kl.refresh_every_steps * found.minibatches == 400
    assert (found.objective.clip_low, found.objective.clip_high) == (10.0, 10.0)
    assert found.reward.correct == found.reward.well_formed == 1.0
    assert found.reward.language == (1.0 if name == "r1-literal" else 0.0)
    if name == "r1-zero-literal":
        assert found.steps * found.minibatches == 10_400


def test_r1s_language_is_the_configs_own(own):
    asked = own.model_copy(update={"reward": RewardConfig(language=0.5, target_language="id")})
    assert PRESETS["r1-literal"](asked).reward.target_language == "id"
    assert PRESETS["r1-literal"](own).reward.target_language == "en"


def test_the_algorithms_differ_where_their_papers_do(own):
    dapo, dr, gspo = (PRESETS[name](own) for name in ("dapo", "dr-grpo", "gspo"))
    assert (dapo.objective.clip_low, dapo.objective.clip_high) == (0.2, 0.28)
    assert dapo.objective.aggregation == "token_mean"
    assert dapo.mask_truncated and dapo.reward.overlong == 1.0
    assert dapo.rollout == own.rollout.model_copy(update={"max_refills": 10})
    assert dr.rollout == gspo.rollout == own.rollout
    assert (dr.advantage.name, dr.objective.aggregation) == ("dr_grpo", "fixed_length")
    assert (gspo.objective.name, gspo.objective.aggregation) == ("gspo", "sequence_mean")
    assert (gspo.objective.clip_low, gspo.objective.clip_high) == (3e-4, 4e-4)
    assert all(found.kl.coef is None for found in (dapo, dr, gspo))
