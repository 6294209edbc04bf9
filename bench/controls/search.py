"""How Countdown thoughts search, and how blind search does under the same limits.

R runs of a blind search
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from statistics import fmean

import numpy as np

from controls.finished import Finished, Row
from controls.results import SEED, Blind, LimitRow, Ratio, Search, SearchPair, Shares
from nalar.data.tokenizer import Tokenizer
from nalar.evals.baselines import Space, limit_for_mean, mean_tries, search
from nalar.evals.protocol import Sample
from nalar.pipeline.evaluation import sample_row
from nalar.pipeline.tasks import EVAL_SEED
from nalar.tasks.problem import Problem
from nalar.tasks.traces import MarkedTry, is_hit, marked_tries, steps_right

CAPS = (48, 64, 96, 128, 192)
TRIES = (1, 2, 3, 4, 6, 8, 12)
RUNS = 500
"""Simulated blind searches of each problem."""
RESAMPLES = 2000

Groups = Sequence[Sequence[Row]]
"""Rows by problem."""


def within_cap(row: Row, max_tokens: int) -> bool:
    """Whether a response sampled under a larger cap would have been correct under this one.

    A cap changes nothing but where a response is cut: it must have ended, correctly, within it.
    """
    return bool(row["correct"]) and row["finish_reason"] == "stop" and row["tokens"] <= max_tokens


def share_by_problem(groups: Groups, holds: Callable[[Row, int], bool]) -> Shares:
    """holds: of a row and the index of its problem."""
    return Shares.of([fmean(holds(row, i) for row in rows) for i, rows in enumerate(groups)])


def caps_table(finished: Finished, greedy: Sequence[Sequence[Sample]]) -> list[LimitRow]:
    """The run's own samples and greedy ones of the final model, cut at several caps."""
    longest = finished.config.evals.max_tokens
    base, final = (finished.rows(when, "countdown") for when in ("before", "after"))
    greedy_rows = [[sample_row(s) for s in group] for group in greedy]
    spaces = _spaces(finished)

    def row(cap: int) -> LimitRow:
        def cut(groups: Groups) -> Shares:
            return share_by_problem(groups, lambda r, _: within_cap(r, cap))

        return LimitRow(
            limit=cap,
            base=cut(base),
            final=cut(final),
            final_greedy=cut(greedy_rows),
            blind_repeats=_blind(spaces, repeats=True, max_tokens=cap),
            blind_no_repeats=_blind(spaces, repeats=False, max_tokens=cap),
        )

    return [row(cap) for cap in (*(c for c in CAPS if c < longest), longest)]


def tries_table(finished: Finished) -> list[LimitRow]:
    """Whether one of the first n marked tries hits, whatever the answer; blind search by exact count.

    A thought that stops before n tries gets no more.
    """
    problems = finished.problems("countdown")
    base, final = (finished.rows(when, "countdown") for when in ("before", "after"))
    counts = [_count_hits(finished, problem) for problem in problems]

    def row(n: int) -> LimitRow:
        def reached(groups: Groups) -> Shares:
            return share_by_problem(
                groups, lambda r, i: hit_within(_tries(r["thought"])[:n], problems[i])
            )

        return LimitRow(
            limit=n,
            base=reached(base),
            final=reached(final),
            final_greedy=None,
            blind_repeats=Shares.of([chance(*c, n, repeats=True) for c in counts]),
            blind_no_repeats=Shares.of([chance(*c, n, repeats=False) for c in counts]),
        )

    return [row(n) for n in TRIES]


def hit_within(tries: Iterable[MarkedTry], problem: Problem) -> bool:
    return any(is_hit(t.text, problem.data) for t in tries)


def chance(hits: int, tries: int, n: int, *, repeats: bool) -> float:
    """That one of n uniform random valid tries hits, of `tries` among which `hits` do."""
    if repeats:
        return 1.0 - (1.0 - hits / tries) ** n
    drawn = min(n, tries)
    return 1.0 - math.comb(tries - hits, drawn) / math.comb(tries, drawn)


def _count_hits(finished: Finished, problem: Problem) -> tuple[int, int]:
    tries = finished.countdown.tries(problem.data["numbers"])
    return sum(t.value == problem.data["target"] for t in tries), len(tries)


def blind_searches(finished: Finished) -> list[Blind]:
    """Under the run's cap, and where it makes as many tries on average as the final model."""
    problems, spaces = finished.problems("countdown"), _spaces(finished)
    final = finished.rows("after", "countdown")
    mean = mean_tries(row["thought"] for rows in final for row in rows)
    assert mean is not None
    found = []
    for repeats in (True, False):
        cap = finished.config.evals.max_tokens
        tries = limit_for_mean(finished.countdown, problems, mean, repeats=repeats)
        for tokens, limit in ((cap, None), (None, tries)):
            shares = _blind(spaces, repeats=repeats, max_tokens=tokens, max_tries=limit)
            found.append(
                Blind(**shares.model_dump(), repeats=repeats, max_tokens=tokens, max_tries=limit)
            )
    return found


def _spaces(finished: Finished) -> list[Space]:
    tokenizer = Tokenizer.load(finished.run.model_dir())
    task = finished.countdown

    @cache
    def cost(text: str) -> int:
        return len(tokenizer.encode(text))

    return [Space.of(task, problem, cost) for problem in finished.problems("countdown")]


def _blind(
    spaces: Sequence[Space],
    *,
    repeats: bool,
    max_tokens: int | None = None,
    max_tries: float | None = None,
) -> Shares:
    """As evals/baselines.py does it, with the value of each problem kept."""
    rng = np.random.default_rng(EVAL_SEED)
    done = [
        search(space, rng, runs=RUNS, repeats=repeats, max_tries=max_tries, max_tokens=max_tokens)
        for space in spaces
    ]
    return Shares.of([float(d.solved_R.mean()) for d in done])


def search_pair(finished: Finished) -> SearchPair:
    problems = finished.problems("countdown")
    base, final = (finished.rows(when, "countdown") for when in ("before", "after"))
    return SearchPair(base=search_of(base, problems), final=search_of(final, problems))


def search_of(groups: Groups, problems: Sequence[Problem]) -> Search:
    """What the thoughts of a model do, from its samples."""
    count = _Counts(len(groups))
    for i, (rows, problem) in enumerate(zip(groups, problems, strict=True)):
        for row in rows:
            count.add(i, row, problem)
    return Search(
        responses=sum(map(len, groups)),
        first_try_wrong=count.ratio("first wrong", "tried"),
        correct_after_first_wrong=count.ratio("correct, first wrong", "first wrong"),
        correct_after_first_right=count.ratio("correct, first right", "first right"),
        mean_tries=fmean(len(marked_tries(row["thought"])) for rows in groups for row in rows),
        repeated_tries=count.ratio("repeated", "tries"),
        steps_right=count.ratio("right steps", "steps"),
        hits_marked=count.ratio("marked hits", "hits"),
        misses_marked_as_hits=count.ratio("marked misses", "misses"),
    )


class _Counts:
    """How often each thing occurs, by problem."""

    def __init__(self, problems: int) -> None:
        self._problems = problems
        self._counts: dict[str, np.ndarray] = {}

    def add(self, i: int, row: Row, problem: Problem) -> None:
        tries = _tries(row["thought"])
        hits = [is_hit(t.text, problem.data) for t in tries]
        if tries:
            first = "first right" if hits[0] else "first wrong"
            self._bump("tried", i)
            self._bump(first, i)
            self._bump(f"correct, {first}", i, bool(row["correct"]))
        texts = ["".join(t.text.split()) for t in tries]
        self._bump("tries", i, len(tries))
        self._bump("repeated", i, len(texts) - len(set(texts)))
        for attempt, hit in zip(tries, hits, strict=True):
            right = steps_right(attempt.text)
            self._bump("steps", i, len(right))
            self._bump("right steps", i, sum(right))
            self._bump("hits" if hit else "misses", i)
            self._bump("marked hits" if hit else "marked misses", i, attempt.marked_hit)

    def ratio(self, part: str, whole: str) -> Ratio:
        return ratio(self._of(part), self._of(whole), seed=SEED)

    def _of(self, name: str) -> np.ndarray:
        return self._counts.setdefault(name, np.zeros(self._problems))

    def _bump(self, name: str, i: int, by: int = 1) -> None:
        self._of(name)[i] += by


def ratio(part: np.ndarray, whole: np.ndarray, *, seed: int) -> Ratio:
    """A ratio of sums over problems, with its interval by resampling whole problems."""
    n = int(whole.sum())
    if n == 0:
        return Ratio(n=0, mean=None, ci95=None)
    picks = np.random.default_rng(seed).integers(len(whole), size=(RESAMPLES, len(whole)))
    wholes = whole[picks].sum(axis=1)
    shares = part[picks].sum(axis=1)[wholes > 0] / wholes[wholes > 0]
    lo, hi = np.quantile(shares, [0.025, 0.975])
    return Ratio(n=n, mean=float(part.sum() / n), ci95=(float(lo), float(hi)))


@lru_cache(maxsize=8192)
def _tries(thought: str) -> tuple[MarkedTry, ...]:
    return tuple(marked_tries(thought))
