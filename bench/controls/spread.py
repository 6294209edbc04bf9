"""One figure over several seeds, and how it is printed."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from controls.results import SEED, Ratio
from nalar.evals.results import Estimate, estimate

MISSING = "–"


@dataclass(frozen=True)
class Spread:
    """A figure's value for each seed, and its interval where problems were measured."""

    by_seed: list[Estimate]
    overall: Estimate | None
    """Of the mean over seeds, by resampling problems, each with all its seeds."""

    @classmethod
    def of_problems(cls, by_seed: Sequence[Sequence[float]]) -> "Spread":
        """by_seed: values of the same problems in the same order."""
        means = [fmean(values) for values in zip(*by_seed, strict=True)]
        return cls([estimate(v, seed=SEED) for v in by_seed], estimate(means, seed=SEED))

    @classmethod
    def of_estimates(cls, by_seed: Sequence[Estimate]) -> "Spread":
        return cls(list(by_seed), by_seed[0] if len(by_seed) == 1 else None)

    @classmethod
    def of_values(cls, by_seed: Sequence[float]) -> "Spread":
        return cls([Estimate(mean=v, ci95=(v, v)) for v in by_seed], None)

    @classmethod
    def of_ratios(cls, by_seed: Sequence[Ratio]) -> "Spread | None":
        """None where a seed has nothing to divide by."""
        found = [
            Estimate(mean=r.mean, ci95=r.ci95)
            for r in by_seed
            if r.mean is not None and r.ci95 is not None
        ]
        return cls.of_estimates(found) if found and len(found) == len(by_seed) else None

    @property
    def mean(self) -> float:
        return fmean(e.mean for e in self.by_seed)

    @property
    def worst(self) -> float:
        return min(e.mean for e in self.by_seed)


def verdict(model: Spread, other: Spread) -> str:
    """By disjoint intervals; level where they share a point."""
    assert model.overall is not None and other.overall is not None
    if model.overall.overlaps(other.overall):
        return "level"
    return "above" if model.mean > other.mean else "below"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def mean_with_interval(spread: Spread | None) -> str:
    if spread is None:
        return MISSING
    return _with_interval(spread.mean, spread.overall)


def seeds(spread: Spread | None, *, intervals: bool = False) -> str:
    if spread is None:
        return MISSING
    return " · ".join(
        _with_interval(e.mean, e) if intervals else percent(e.mean) for e in spread.by_seed
    )


def with_seeds(spread: Spread | None) -> str:
    """Mean and interval, and behind them the seeds where there are several."""
    if spread is None or len(spread.by_seed) == 1:
        return mean_with_interval(spread)
    return f"{mean_with_interval(spread)} ({seeds(spread)})"


def _with_interval(mean: float, interval: Estimate | None) -> str:
    if interval is None:
        return percent(mean)
    lo, hi = interval.ci95
    return f"{percent(mean)} [{percent(lo)}, {percent(hi)}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are figures."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
