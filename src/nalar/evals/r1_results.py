"""What a pipeline measures of each model: results by task, with less thought too, and who wins. Imports no torch."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

from pydantic import Field

from nalar.evals.results import Estimate, Finite, TaskResult, estimate

Mode = Literal["on", "budget", "off"]
"""How a model is asked: with all the thought it wants, with so many tokens of it, with none."""


class ModelResult(Finite):
    """One model, on the held-out problems that all models of a pipeline are measured on. Only gains keys."""

    schema_version: int = 1
    stage: str
    """That made it."""
    tasks: dict[str, TaskResult]
    """By task id, with all the thought it wants."""
    thought_tokens: dict[str, float]
    """Mean length of a thought."""
    quality: dict[str, Estimate] = Field(default_factory=dict)
    """Of answers, in [0, 1], for tasks that rate them."""
    win_rate: dict[str, Estimate] = Field(default_factory=dict)
    """Chance that an answer is rated above one of the base's to the same problem, half of it where they are level."""
    modes: dict[Mode, dict[str, TaskResult]] = Field(default_factory=dict)
    """Other ways to ask than `on`, for models that were taught them: by task id."""


def win_rates(own: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> list[float]:
    """A problem's chance that one of the first ratings is above one of the second; half of it where they are level.

    Both by problem, in the same order.
    """
    return [
        fmean((one > two) + 0.5 * (one == two) for one in mine for two in theirs)
        for mine, theirs in zip(own, other, strict=True)
    ]


def win_rate(
    own: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], *, seed: int
) -> Estimate | None:
    """Over the problems, by their keys, that both were asked; None where there are none."""
    shared = [key for key in own if key in other]
    if not shared:
        return None
    rates = win_rates([own[key] for key in shared], [other[key] for key in shared])
    return estimate(rates, seed=seed)
