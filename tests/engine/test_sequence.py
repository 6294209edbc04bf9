import pytest

from nalar.config import ConfigError, UserError
from nalar.engine.sequence import Request, SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", 0),
        ("stop_token_ids", (-1,)),
    ],
)
def test_a_bad_sampling_parameter_is_named(field, value):
    with pytest.raises(ConfigError, match=rf"sampling\.{field}: got"):
        SamplingParams(**{field: value})


def test_an_empty_prompt_is_refused():
    with pytest.raises(UserError, match="at least one token"):
        Request((), SamplingParams())
