import math

import pytest
from pydantic import ValidationError

from nalar.config import ConfigError
from nalar.rl.config import CorrectionConfig, KLConfig, ObjectiveConfig, RLConfig


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf])
def test_a_temperature_at_which_nothing_can_be_trained_is_refused(temperature):
    with pytest.raises(ValidationError, match="temperature"):
        RLConfig(steps=1, temperature=temperature)


@pytest.mark.parametrize(
    ("part", "field", "settings"),
    [
        (ObjectiveConfig, "objective.clip_low", {"name": "gspo"}),
        (ObjectiveConfig, "objective.clip_high", {"name": "gspo", "clip_low": 3e-4}),
        (ObjectiveConfig, "objective.dual_clip", {"name": "cispo", "dual_clip": 3.0}),
        (KLConfig, "kl.refresh_every_steps", {"refresh_every_steps": 4}),
        (CorrectionConfig, "correction.weights", {"weights": "truncate"}),
        (CorrectionConfig, "correction.level", {"level": "sequence"}),
        (
            CorrectionConfig,
            "correction.floor",
            {"old_logprobs": "trainer", "weights": "truncate", "floor": 0.5},
        ),
    ],
)
def test_parts_that_cannot_work_are_named(part, field, settings):
    with pytest.raises(ConfigError, match=rf"rl\.{field}:"):
        part(**settings)


def test_a_weight_a_token_does_not_fit_a_ratio_a_response():
    objective = ObjectiveConfig(name="gspo", clip_low=3e-4, clip_high=4e-4)
    weights = CorrectionConfig(old_logprobs="trainer", weights="mask")
    with pytest.raises(ConfigError, match=r"rl\.correction\.level"):
        RLConfig(steps=1, objective=objective, correction=weights)
    whole = weights.model_copy(update={"level": "sequence"})
    assert RLConfig(steps=1, objective=objective, correction=whole).correction == whole


@pytest.mark.parametrize(("field", "value"), [("minibatches", 3), ("group_size", 1), ("tasks", ())])
def test_settings_that_disagree_are_named(field, value):
    with pytest.raises(ConfigError, match=rf"rl\.{field}"):
        RLConfig(steps=1, **{field: value})


@pytest.mark.parametrize(
    "field", ["steps", "prompts_per_step", "max_tokens", "minibatches", "save_every_steps"]
)
def test_a_count_of_nothing_is_refused(field):
    with pytest.raises(ValidationError, match=field):
        RLConfig(**({"steps": 1} | {field: 0}))
