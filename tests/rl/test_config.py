import pytest
from pydantic import ValidationError

from nalar.config import ConfigError
from nalar.rl.config import RLConfig


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.2])
def test_another_temperature_would_bias_the_gradient_and_is_refused(temperature):
    with pytest.raises(ConfigError, match=r"rl\.temperature"):
        RLConfig(steps=1, temperature=temperature)


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
