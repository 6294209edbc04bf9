import pytest

from nalar.config import UserError
from nalar.server.ask import Thinking
from nalar.server.dialects.controls import thinking_of
from nalar.server.thinking_config import EffortConfig

EFFORTS = EffortConfig(minimal=10, low=20, medium=30)


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ({}, Thinking()),
        ({"reasoning_effort": "none"}, Thinking(False)),
        ({"reasoning_effort": "low"}, Thinking(True, 20)),
        ({"reasoning_effort": "high"}, Thinking(True)),
        ({"thinking": {"type": "enabled", "budget_tokens": 7}}, Thinking(True, 7)),
        ({"thinking": {"type": "disabled", "budget_tokens": 7}}, Thinking(False)),
        ({"thinking": {"type": "adaptive"}}, Thinking(True)),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "low"}, Thinking(True, 20)),
        ({"chat_template_kwargs": {"enable_thinking": False}}, Thinking(False)),
        ({"chat_template_kwargs": {"thinking": True, "other": 5}}, Thinking(True)),
        (
            {"chat_template_kwargs": {"thinking": False}, "thinking": {"type": "enabled"}},
            Thinking(False),
        ),
        ({"thinking_token_budget": 5}, Thinking(None, 5)),
        ({"thinking_token_budget": 5, "reasoning_effort": "medium"}, Thinking(True, 5)),
        ({"thinking_token_budget": 5, "reasoning_effort": "none"}, Thinking(False)),
        ({"reasoning": {"effort": "minimal"}, "reasoning_effort": "low"}, Thinking(True, 10)),
        ({"reasoning": {"max_tokens": 0}}, Thinking(True, 0)),
        ({"reasoning": {"enabled": False, "max_tokens": 9}}, Thinking(False)),
        ({"messages": [{"role": "control", "content": "thinking"}]}, Thinking(True)),
        (
            {
                "messages": [{"role": "control", "content": "thinking"}],
                "thinking": {"type": "disabled"},
            },
            Thinking(False),
        ),
        ({"thinking": None, "reasoning_effort": None}, Thinking()),
    ],
)
def test_every_control_is_one_switch_and_one_budget(body, want):
    assert thinking_of(body, EFFORTS) == want


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"reasoning_effort": "hihg"}, "reasoning_effort"),
        ({"reasoning_effort": ["low"]}, "reasoning_effort"),
        ({"reasoning_effort": 3, "thinking": {"type": "disabled"}}, "reasoning_effort"),
        ({"thinking": "enabled"}, "thinking"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"thinking": {"budget_tokens": -1}}, "thinking.budget_tokens"),
        ({"thinking_token_budget": True}, "thinking_token_budget"),
        ({"thinking_token_budget": 1.5}, "thinking_token_budget"),
        ({"reasoning": {"enabled": "yes"}}, "reasoning.enabled"),
        ({"reasoning": {"effort": "x" * 500}}, "reasoning.effort"),
        (
            {"chat_template_kwargs": {"enable_thinking": "true"}},
            "chat_template_kwargs.enable_thinking",
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": True, "thinking": False}},
            "chat_template_kwargs.thinking",
        ),
        ({"messages": [{"role": "control", "content": "x"}]}, "messages.content"),
    ],
)
def test_a_bad_value_is_refused_by_its_field(body, field):
    with pytest.raises(UserError) as caught:
        thinking_of(body, EFFORTS)
    assert caught.value.at == field and len(str(caught.value)) < 400
