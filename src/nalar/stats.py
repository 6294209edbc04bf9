"""What a score means: pass@k, votes, intervals over problems, paired comparison."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 22  # resampled values held at once


@dataclass(frozen=True)
class Interval:
    """A mean over problems and its 95% interval."""

    mean: float
    lo: float
    hi: float

    def overlaps(self, other: "Interval") -> bool:
        return self.lo <= other.hi and other.lo <= self.hi


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold one of the c correct ones.

    Unbiased for the chance that k fresh samples hold a correct one (arXiv:2107.03374). Needs k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k wants 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def winner(votes: Sequence[str | None]) -> str | None:
    """The answer with most votes; None where nobody voted, or where two answers share the lead."""
    ranking = Counter(vote for vote in votes if vote is not None).most_common(2)
    if not ranking or (len(ranking) == 2 and ranking[0][1] == ranking[1][1]):
        return None
    return ranking[0][0]


def majority(votes: Sequence[str | None], correct: Mapping[str, bool]) -> bool:
    """Whether the vote finds a correct answer. None is no vote; a tie is wrong, even one of correct answers."""
    chosen = winner(votes)
    return chosen is not None and correct[chosen]


def bootstrap_ci(
    values_per_problem: Sequence[float], *, seed: int, resamples: int = 2000
) -> Interval:
    """The mean and its 95% percentile interval, resampling whole problems.

    One value a problem (its own mean over samples). Where all values are equal the interval has no width: it
    tells nothing of problems unlike those seen.
    """
    values = np.asarray(values_per_problem, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError("an interval needs one finite value for each of at least one problem")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // values.size)
    means = [
        values[rng.integers(values.size, size=(min(rows, resamples - start), values.size))].mean(
            axis=1
        )
        for start in range(0, resamples, rows)
    ]
    lo, hi = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(values.mean()), float(lo), float(hi))


def paired_difference(
    before: Sequence[float], after: Sequence[float], *, seed: int, resamples: int = 2000
) -> Interval:
    """The mean of `after - before` over the same problems in the same order.

    Narrower than the two intervals apart suggest, since what makes a problem hard cancels.
    """
    if len(before) != len(after):
        raise ValueError(f"pairs want the same problems: {len(before)} before, {len(after)} after")
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return bootstrap_ci(differences.tolist(), seed=seed, resamples=resamples)
