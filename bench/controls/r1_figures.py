"""A pipeline's models problem by problem, from their samples, so that several seeds can be read as one."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from controls.results import SEED
from controls.spread import Spread
from nalar.evals.r1_results import Mode, ModelResult, win_rates
from nalar.evals.results import Estimate, Finite, estimate
from nalar.tasks.language import is_readable, says_language

Row = Mapping[str, Any]
"""A measured response as samples/measure_*.jsonl holds it."""
WORDED_FRAC = 0.1
"""Problems with a thought in words, at least, for the share of readable ones to say something."""
_DIGITS = 4


class Figures(Finite):
    """One task, asked in one way. By problem, which are the same in the same order for every model and seed."""

    correct: list[float]
    """Share of the samples."""
    readable: list[float | None]
    """Of the thoughts with words to tell a language by, the share in one language and without a loop. None: none."""
    quality: list[float] | None = None
    """Mean rating, in [0, 1]; None where nothing rates."""
    wins: list[float] | None = None
    """Chance that an answer is rated above one of the base's, half of it where they are level."""


class Model(Finite):
    """One model."""

    result: ModelResult
    problems: dict[Mode, dict[str, Figures]]
    """By mode and task id."""

    @classmethod
    def read(
        cls, result: Mapping[str, Any], rows: Sequence[Row], base_rows: Sequence[Row]
    ) -> "Model":
        """From a measurement, its samples, and those of the base."""
        return cls(result=ModelResult.model_validate(result), problems=figures_of(rows, base_rows))

    def values(self, task: str, figure: str, mode: Mode = "on") -> list[float | None] | None:
        """By problem; None where this was not measured. figure: a name of `Figures`."""
        found = self.problems.get(mode, {}).get(task)
        return None if found is None else getattr(found, figure)


def figures_of(rows: Sequence[Row], base_rows: Sequence[Row]) -> dict[Mode, dict[str, Figures]]:
    base, found = _grouped(base_rows), dict[Mode, dict[str, Figures]]()
    for (mode, task), groups in _grouped(rows).items():
        found.setdefault(mode, {})[task] = _figures(groups, base.get((mode, task), {}))
    return found


def _grouped(rows: Sequence[Row]) -> dict[tuple[Mode, str], dict[str, list[Row]]]:
    """By mode and task, then by problem, in the order in which they were asked."""
    found: dict[tuple[Mode, str], dict[str, list[Row]]] = {}
    for row in rows:
        groups = found.setdefault((row["mode"], row["task"]), {})
        groups.setdefault(row["key"], []).append(row)
    return found


def _figures(groups: Mapping[str, Sequence[Row]], base: Mapping[str, Sequence[Row]]) -> Figures:
    quality = [_ratings(group) for group in groups.values()]
    is_rated = all(quality)
    wins = None
    if is_rated and groups.keys() == base.keys():
        wins = _short(win_rates(quality, [_ratings(base[key]) for key in groups]))
    return Figures(
        correct=_short(fmean(bool(row["correct"]) for row in group) for group in groups.values()),
        readable=[_readable(group) for group in groups.values()],
        quality=_short(map(fmean, quality)) if is_rated else None,
        wins=wins,
    )


def _ratings(group: Sequence[Row]) -> list[float]:
    return [row["quality"] for row in group if "quality" in row]


def _readable(group: Sequence[Row]) -> float | None:
    worded = [row["thought"] for row in group if says_language(row["thought"])]
    return round(fmean(map(is_readable, worded)), _DIGITS) if worded else None


def _short(values: Any) -> list[float]:
    return [round(value, _DIGITS) for value in values]


def spread(models: Sequence[Model], task: str, figure: str, mode: Mode = "on") -> Spread | None:
    """Of one figure over seeds; None where one of them lacks it, or hardly a problem has it."""
    by_seed = [model.values(task, figure, mode) for model in models]
    known = [values for values in by_seed if values is not None]
    if not known or len(known) < len(by_seed):
        return None
    return spread_of(known)


def spread_of(by_seed: Sequence[Sequence[float | None]]) -> Spread | None:
    """by_seed: values of the same problems in the same order; None where a problem has none."""
    own = [[value for value in values if value is not None] for values in by_seed]
    if any(
        not have or len(have) < WORDED_FRAC * len(all_)
        for have, all_ in zip(own, by_seed, strict=True)
    ):
        return None
    means = [_mean(values) for values in zip(*by_seed, strict=True)]
    overall = estimate([mean for mean in means if mean is not None], seed=SEED)
    return Spread([estimate(values, seed=SEED) for values in own], _around(overall, own))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _around(overall: Estimate, own: Sequence[Sequence[float]]) -> Estimate:
    """With the mean over seeds that is shown: where problems lack values it is another than that over problems."""
    return overall.model_copy(update={"mean": fmean(map(fmean, own))})
