"""Every known way to ask for thinking, as one switch and one budget. Imports no torch."""

from collections.abc import Mapping
from typing import Any, TypeVar

from nalar.config import UserError, nearest
from nalar.server.ask import Thinking
from nalar.server.thinking_config import EffortConfig

T = TypeVar("T")

NONE = "none"
TEMPLATE_SWITCHES = ("enable_thinking", "thinking")
"""Variables of chat templates that switch thinking."""
_SWITCHES = {"enabled": True, "adaptive": True, "disabled": False}


def thinking_of(body: Mapping[str, Any], efforts: EffortConfig) -> Thinking:
    """What a request's body asks of thinking. UserError that names the field with a bad value, in use or not.

    Where fields disagree the most specific wins. The switch, from the most specific on:
    chat_template_kwargs.enable_thinking or .thinking, thinking.type, reasoning.enabled, reasoning.effort,
    reasoning_effort, a message of the role `control` (`thinking`, as Granite has it). The budget:
    thinking_token_budget, thinking.budget_tokens, reasoning.max_tokens, that of the effort. A budget of thinking or
    reasoning alone switches thinking on; with thinking off there is none.
    """
    kwargs = _object(body, "chat_template_kwargs")
    thinking, reasoning = _object(body, "thinking"), _object(body, "reasoning")
    by_reasoning = _effort(reasoning.get("effort"), "reasoning.effort", efforts)
    by_effort = _effort(body.get("reasoning_effort"), "reasoning_effort", efforts)
    own = _budget(body.get("thinking_token_budget"), "thinking_token_budget")
    of_thinking = _budget(thinking.get("budget_tokens"), "thinking.budget_tokens")
    of_reasoning = _budget(reasoning.get("max_tokens"), "reasoning.max_tokens")
    enabled = _first(
        _template_switch(kwargs),
        _type(thinking.get("type")),
        True if of_thinking is not None else None,
        _bool(reasoning.get("enabled"), "reasoning.enabled"),
        True if of_reasoning is not None else None,
        by_reasoning.enabled,
        by_effort.enabled,
        True if _has_control(body.get("messages")) else None,
    )
    if enabled is False:
        return Thinking(enabled=False)
    of_effort = by_reasoning if by_reasoning.enabled is not None else by_effort
    return Thinking(enabled, _first(own, of_thinking, of_reasoning, of_effort.budget_tokens))


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)


def _object(body: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = body.get(field)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(at=field, got=_shown(value), want="an object")
    return value


def _bool(value: object, at: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise UserError(at=at, got=_shown(value), want="true or false")


def _budget(value: object, at: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(at=at, got=_shown(value), want="a whole number of tokens, 0 or more")
    return value


def _template_switch(kwargs: Mapping[str, Any]) -> bool | None:
    found = [_bool(kwargs.get(name), f"chat_template_kwargs.{name}") for name in TEMPLATE_SWITCHES]
    if None not in found and found[0] != found[1]:
        raise UserError(
            at="chat_template_kwargs.thinking",
            got=f"{found[1]} beside enable_thinking={found[0]}".lower(),
            want="one of the two, or both alike",
        )
    return _first(*found)


def _type(value: object) -> bool | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in _SWITCHES:
        raise UserError(
            at="thinking.type", got=_shown(value), want="one of " + ", ".join(_SWITCHES)
        )
    return _SWITCHES[value]


def _effort(value: object, at: str, efforts: EffortConfig) -> Thinking:
    if value is None:
        return Thinking()
    known = [NONE, *EffortConfig.model_fields]
    if not isinstance(value, str) or value not in known:
        close = nearest(value, known) if isinstance(value, str) else None
        raise UserError(
            at=at,
            got=_shown(value),
            want="one of " + ", ".join(known),
            hint=close and f"did you mean {close!r}?",
        )
    if value == NONE:
        return Thinking(enabled=False)
    return Thinking(enabled=True, budget_tokens=getattr(efforts, value))


def _has_control(messages: object) -> bool:
    """Whether a message of the role control says `thinking`; UserError where it says something else."""
    found = False
    for message in messages if isinstance(messages, list | tuple) else ():
        if isinstance(message, Mapping) and message.get("role") == "control":
            if message.get("content") != "thinking":
                got = _shown(message.get("content"))
                raise UserError(
                    at="messages.content", got=got, want="thinking, in the role control"
                )
            found = True
    return found


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
