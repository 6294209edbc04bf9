"""How good a reward model is on judgements that it was not trained on: accuracy, biases, calibration.

Imports no torch.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from nalar.evals.results import Estimate, Finite, estimate

SCHEMA_VERSION = 1
REWARD_RESULTS = "reward.json"
_BINS = 10
_LEAST = 3
"""Of what is correlated: fewer say nothing."""


@dataclass(frozen=True)
class Side:
    """An answer as it was scored."""

    score: float
    tokens: int
    """Of thought and answer, as far as they are scored; without the prompt."""
    quality: float | None = None
    """The truth, where somebody knows it."""


@dataclass(frozen=True)
class Judged:
    """A judgement of the test, and what the model made of it. Of a label one side is there, and 0 is the other."""

    key: str
    """Of the conversation: judgements on one stand or fall together in intervals."""
    better: Side | None
    worse: Side | None
    better_first: bool = True
    flaw: str | None = None
    margin_swapped: float | None = None
    """Of a pair, with all that was scored given in the opposite order."""
    margin_alone: float | None = None
    """With each answer scored by itself."""

    @property
    def margin(self) -> float:
        return (self.better.score if self.better else 0) - (self.worse.score if self.worse else 0)

    @property
    def is_right(self) -> bool:
        return self.margin > 0

    @property
    def sides(self) -> list[Side]:
        return [side for side in (self.better, self.worse) if side is not None]


class PositionBias(Finite):
    """What the order of two answers, or the company of others, does to scores."""

    verdicts_changed_frac: float
    """Of the pairs, those whose verdict is another one when the two sides change places."""
    largest_by_order: float
    """The largest change of a margin by that. 0: scores do not depend on the order, to the bit."""
    largest_by_company: float
    """The largest change of a margin when each answer is scored by itself: rounding."""
    first_preferred_frac: float | None
    """Of the pairs, those in which the side that was given first scores higher: near a half, for which side that is was
    drawn. None: there are no pairs."""


class LengthBias(Finite):
    """What length does to scores."""

    correlation: float | None
    """Of score and tokens, from -1 to 1, among answers of equal quality (to a tenth; where nobody rates, among better
    sides and among worse sides). None: not enough answers, or all alike."""
    worse_longer: Estimate | None
    """Accuracy on pairs whose worse side is the longer one. None: there are none."""
    worse_shorter: Estimate | None
    better_tokens: float | None
    """Mean over the better sides."""
    worse_tokens: float | None


class Bin(Finite):
    """Verdicts of like certainty."""

    n: int
    certainty: float
    """Mean of what the model says how often it is right."""
    right_frac: float


class RewardResults(Finite):
    """`reward.json`. Only gains keys. Shares lie in [0, 1]."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["preference", "safety"]
    data: str
    trained: int
    """Judgements that were trained on in an epoch."""
    n: int
    """Judgements of the test."""
    accuracy: Estimate
    safe_passed: Estimate | None
    """Safety: of the safe answers, those that score above 0."""
    unsafe_caught: Estimate | None
    position: PositionBias
    length: LengthBias
    calibration: list[Bin]
    calibration_error: float
    """Mean over the verdicts of how far certainty and truth of their bin are apart."""
    log_loss: float
    """Nats a judgement; 0.693 is that of a model that knows nothing."""
    by_flaw: dict[str, Estimate]
    """Accuracy by what is wrong with the worse side, or with answer or thought of a label, where that has a name."""


def reward_results(
    judged: Sequence[Judged],
    *,
    kind: Literal["preference", "safety"],
    data: str,
    trained: int,
    seed: int,
) -> RewardResults:
    """Of one judgement at least."""

    def accuracy(of: Callable[[Judged], bool]) -> Estimate | None:
        return _accuracy([one for one in judged if of(one)], seed)

    every = accuracy(lambda one: True)
    if every is None:
        raise ValueError("a test wants judgements")
    is_safety = kind == "safety"
    bins = _bins(judged)
    flaws = sorted({one.flaw for one in judged if one.flaw is not None})
    found = {flaw: accuracy(lambda one, flaw=flaw: one.flaw == flaw) for flaw in flaws}  # type: ignore[misc]
    return RewardResults(
        kind=kind,
        data=data,
        trained=trained,
        n=len(judged),
        accuracy=every,
        safe_passed=accuracy(lambda one: one.worse is None) if is_safety else None,
        unsafe_caught=accuracy(lambda one: one.better is None) if is_safety else None,
        position=_position(judged),
        length=_length(judged, accuracy),
        calibration=bins,
        calibration_error=sum(b.n * abs(b.certainty - b.right_frac) for b in bins) / len(judged),
        log_loss=fmean(_softplus(-one.margin) for one in judged),
        by_flaw={flaw: share for flaw, share in found.items() if share is not None},
    )


def _accuracy(judged: Iterable[Judged], seed: int) -> Estimate | None:
    """Over conversations, each by the mean over its judgements."""
    by_key: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        by_key[one.key].append(float(one.is_right))
    return estimate([fmean(values) for values in by_key.values()], seed=seed) if by_key else None


def _position(judged: Sequence[Judged]) -> PositionBias:
    pairs = [(one, swapped) for one in judged if (swapped := one.margin_swapped) is not None]
    alone = [(one, margin) for one in judged if (margin := one.margin_alone) is not None]
    return PositionBias(
        verdicts_changed_frac=fmean(one.is_right != (m > 0) for one, m in pairs) if pairs else 0.0,
        largest_by_order=max((abs(one.margin - m) for one, m in pairs), default=0.0),
        largest_by_company=max((abs(one.margin - m) for one, m in alone), default=0.0),
        first_preferred_frac=fmean(one.is_right == one.better_first for one, _ in pairs)
        if pairs
        else None,
    )


def _length(
    judged: Sequence[Judged], accuracy: Callable[[Callable[[Judged], bool]], Estimate | None]
) -> LengthBias:
    grades: dict[tuple[str, float], list[Side]] = defaultdict(list)
    for one in judged:
        for name, side in (("better", one.better), ("worse", one.worse)):
            if side is not None:
                rated = side.quality is not None
                grades["rated" if rated else name, round(side.quality or 0.0, 1)].append(side)
    better, worse = (
        [side.tokens for one in judged if (side := getattr(one, name)) is not None]
        for name in ("better", "worse")
    )

    def lead(one: Judged) -> int:
        return one.worse.tokens - one.better.tokens if one.better and one.worse else 0

    return LengthBias(
        correlation=correlation_within(list(grades.values())),
        worse_longer=accuracy(lambda one: lead(one) > 0),
        worse_shorter=accuracy(lambda one: lead(one) < 0),
        better_tokens=fmean(better) if better else None,
        worse_tokens=fmean(worse) if worse else None,
    )


def correlation_within(groups: Sequence[Sequence[Side]]) -> float | None:
    """Pearson's of score and tokens, each less its group's mean: between groups nothing is compared."""
    scores, lengths = list[float](), list[float]()
    for group in groups:
        score, length = fmean(s.score for s in group), fmean(s.tokens for s in group)
        scores += [side.score - score for side in group]
        lengths += [side.tokens - length for side in group]
    spread = math.sqrt(sum(s * s for s in scores) * sum(n * n for n in lengths))
    if len(scores) < _LEAST or spread <= 1e-12:
        return None
    return sum(s * n for s, n in zip(scores, lengths, strict=True)) / spread


def _bins(judged: Sequence[Judged]) -> list[Bin]:
    """Verdicts by their certainty, which lies between a half and 1; empty bins are left out."""
    binned: dict[int, list[Judged]] = defaultdict(list)
    for one in judged:
        binned[min(_BINS - 1, int((_certainty(one) - 0.5) * 2 * _BINS))].append(one)
    return [
        Bin(
            n=len(ones),
            certainty=fmean(map(_certainty, ones)),
            right_frac=fmean(one.is_right for one in ones),
        )
        for _, ones in sorted(binned.items())
    ]


def _certainty(one: Judged) -> float:
    return 1.0 / (1.0 + math.exp(-min(abs(one.margin), 700.0)))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
