"""What is reached without a model: the best constant answer, and blind search. Imports no torch.

R runs of a search · N distinct tries over the numbers of a problem · L tries that a run can make at most
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nalar.evals.results import Estimate, Finite, estimate
from nalar.tasks.countdown import Countdown
from nalar.tasks.problem import Problem, Task
from nalar.tasks.traces import HIT, MISS, marked_tries

CLOSING_TOKENS = 2
"""What a response needs beside its tries and its answer: the end of the thought and the end of the turn."""
TRAIN_PROBLEMS = 300
"""On which the constant is chosen."""
GUESSES = 300
"""Blind guesses at each problem, from which the chance of one is estimated."""
COSTLY = 4
"""Constants, and guesses at each problem, where a score takes milliseconds."""

SURELY = 1e-6
"""A share of searches that does not matter."""

TokenCost = Callable[[str], int]
"""Tokens that a text takes in the model's own tokenizer."""


class ConstantBaseline(Finite):
    """One answer given to every problem."""

    answer: str
    train_frac: float
    """Share of train problems that it solves; it was chosen for that."""
    pass_at_1: Estimate
    """On the test problems."""


class GuessBaseline(Finite):
    """One blind guess at each problem: right in form, by someone who read the problem and did not solve it."""

    guesses: int
    """At each problem; pass@1 is the share that is right."""
    pass_at_1: Estimate


class BlindBaseline(Finite):
    """Random answers of the right form, stopping at a hit, which is always recognised.

    For Countdown uniform valid tries with exact arithmetic, for other tasks the task's own blind guesses.
    """

    task: str
    repeats: bool
    """False: the searcher knows all valid tries and makes none twice."""
    max_tries: float | None
    """Tries of a run at most. A fraction is the share of runs that may make one more."""
    max_tokens: int | None
    """Tokens of a run at most, its answer included: the cap that the model had."""
    runs: int
    """Simulated searches of each problem."""
    pass_at_1: Estimate
    mean_tries: float
    mean_tokens: float | None
    """Of the tries made and of the answer where there is one."""


class Baselines(Finite):
    """All of them, over the same test problems as the model."""

    constant: dict[str, ConstantBaseline] = Field(default_factory=dict)
    """By task id."""
    guess: dict[str, GuessBaseline] = Field(default_factory=dict)
    """By task id; of tasks other than Countdown, whose blind tries are searched."""
    blind_search: list[BlindBaseline] = Field(default_factory=list)
    """Of tasks whose answers are easier to check than to find."""


def best_constant(
    task: Task, train: Sequence[Problem], test: Sequence[Problem], *, seed: int
) -> ConstantBaseline | None:
    """The task's constant that solves most of `train` (the first of equals), measured on `test`."""

    def solved(answer: str, problems: Sequence[Problem]) -> list[float]:
        return [float(task.score(problem, answer).correct) for problem in problems]

    constants = list(dict.fromkeys(task.constants()))[: COSTLY if task.is_costly else None]
    shares = {answer: fmean(solved(answer, train)) for answer in constants}
    if not shares:
        return None
    best = max(shares, key=lambda answer: shares[answer])
    return ConstantBaseline(
        answer=best,
        train_frac=shares[best],
        pass_at_1=estimate(solved(best, test), seed=seed),
    )


def blind_guess(task: Task, problems: Sequence[Problem], *, seed: int) -> GuessBaseline:
    """The chance of one guess at each of `problems`, from GUESSES of them (COSTLY, where a score takes long)."""
    rng, count = random.Random(f"guess {task.id} {seed}"), COSTLY if task.is_costly else GUESSES
    shares = [
        fmean(task.score(p, task.guess(rng, p)).correct for _ in range(count)) for p in problems
    ]
    return GuessBaseline(guesses=count, pass_at_1=estimate(shares, seed=seed))


@dataclass(frozen=True)
class Space:
    """All tries over the numbers of one problem, or a sample of the guesses at it."""

    is_hit_N: NDArray[np.bool_]
    cost_N: NDArray[np.int64]
    """Tokens of the try; for a hit, with those of the answer that follows."""

    @classmethod
    def of(cls, task: Countdown, problem: Problem, token_cost: TokenCost) -> "Space":
        """The lines as the corpus writes them: one a try, its mark at the end."""
        target = problem.data["target"]
        tries = task.tries(problem.data["numbers"])
        costs = [
            token_cost(t.steps + HIT) + token_cost(t.expression) + CLOSING_TOKENS
            if t.value == target
            else token_cost(t.steps + MISS + "\n")
            for t in tries
        ]
        hits = [t.value == target for t in tries]
        return cls(np.array(hits, dtype=np.bool_), np.array(costs, dtype=np.int64))

    @classmethod
    def sampled(
        cls, task: Task, problem: Problem, token_cost: TokenCost, rng: random.Random
    ) -> "Space":
        """GUESSES of the task's blind guesses, one a line, which stand for all there are."""
        guesses = [task.guess(rng, problem) for _ in range(GUESSES)]
        hits = [task.score(problem, guess).correct for guess in guesses]
        costs = [
            token_cost(guess + HIT) + token_cost(guess) + CLOSING_TOKENS
            if is_hit
            else token_cost(guess + MISS + "\n")
            for guess, is_hit in zip(guesses, hits, strict=True)
        ]
        return cls(np.array(hits, dtype=np.bool_), np.array(costs, dtype=np.int64))


@dataclass(frozen=True)
class Searches:
    """What became of R runs over one problem."""

    solved_R: NDArray[np.bool_]
    tries_R: NDArray[np.int64]
    tokens_R: NDArray[np.int64]


def search(
    space: Space,
    rng: np.random.Generator,
    *,
    runs: int,
    repeats: bool,
    max_tries: float | None,
    max_tokens: int | None,
) -> Searches:
    """Simulate. A hit counts where its answer fits too; a try that does not fit ends the run."""
    order_RL = _orders(space, rng, runs, repeats, _longest(space, repeats, max_tries, max_tokens))
    spent_RL = space.cost_N[order_RL].cumsum(axis=1)
    fits_RL = np.ones(order_RL.shape, dtype=np.bool_)
    if max_tries is not None:
        whole = math.floor(max_tries)
        limit_R = whole + (rng.random(runs) < max_tries - whole)
        fits_RL &= np.arange(order_RL.shape[1]) < limit_R[:, None]
    if max_tokens is not None:
        fits_RL &= spent_RL <= max_tokens
    found_RL = space.is_hit_N[order_RL] & fits_RL
    solved_R = np.asarray(found_RL.any(axis=1))
    # counted, not argmax, which has no answer where not one try fits
    misses_R = (~np.logical_or.accumulate(found_RL, axis=1)).sum(axis=1)
    tries_R = np.where(solved_R, misses_R + 1, fits_RL.sum(axis=1))
    padded_RL = np.pad(spent_RL, ((0, 0), (1, 0)))
    return Searches(solved_R, tries_R, padded_RL[np.arange(runs), tries_R])


def _longest(space: Space, repeats: bool, max_tries: float | None, max_tokens: int | None) -> int:
    """Tries that any run can make under the limits."""
    count = len(space.cost_N)
    bounds = [] if repeats else [count]
    if max_tries is not None:
        bounds.append(math.ceil(max_tries))
    if max_tokens is not None and count:
        bounds.append(max_tokens // max(1, int(space.cost_N.min())))
    return min(bounds) if count else 0


def _orders(
    space: Space, rng: np.random.Generator, runs: int, repeats: bool, longest: int
) -> NDArray[np.int64]:
    """Which try comes when: [R, L]."""
    count = len(space.cost_N)
    if longest == 0:
        return np.zeros((runs, 0), dtype=np.int64)
    if repeats:
        return rng.integers(count, size=(runs, longest))
    # the L smallest of N random keys, in the order of their keys, are L distinct tries in random order
    keys_RN = rng.random((runs, count))
    some_RL = np.argpartition(keys_RN, longest - 1, axis=1)[:, :longest]
    rank_RL = np.take_along_axis(keys_RN, some_RL, axis=1).argsort(axis=1)
    return np.take_along_axis(some_RL, rank_RL, axis=1)


def lists_tries(task: Task) -> TypeGuard[Countdown]:
    """Whether every try at a problem can be listed, so that a search may avoid repeats."""
    return isinstance(task, Countdown) and task.can_list_tries


def blind_search(
    task: Task,
    problems: Sequence[Problem],
    *,
    repeats: bool,
    max_tries: float | None = None,
    max_tokens: int | None = None,
    token_cost: TokenCost | None = None,
    runs: int = 500,
    seed: int,
) -> BlindBaseline:
    """Search each problem `runs` times, within one limit or both.

    Where all tries cannot be listed (`lists_tries`) they are sampled, and `repeats` must be True.
    """
    if max_tries is None and max_tokens is None:
        raise ValueError("blind search wants max_tries or max_tokens: it would not end")
    if max_tokens is not None and token_cost is None:
        raise ValueError("max_tokens wants token_cost")
    if not (repeats or lists_tries(task)):
        raise ValueError("a search without repeats wants a task whose tries can be listed")
    cost, guessing = token_cost or _free, random.Random(f"search {task.id} {seed}")
    rng = np.random.default_rng(seed)
    done = [
        search(
            Space.of(task, problem, cost)
            if lists_tries(task)
            else Space.sampled(task, problem, cost, guessing),
            rng,
            runs=runs,
            repeats=repeats,
            max_tries=max_tries,
            max_tokens=max_tokens,
        )
        for problem in problems
    ]
    return BlindBaseline(
        task=task.id,
        repeats=repeats,
        max_tries=max_tries,
        max_tokens=max_tokens,
        runs=runs,
        pass_at_1=estimate([float(d.solved_R.mean()) for d in done], seed=seed),
        mean_tries=fmean(float(d.tries_R.mean()) for d in done),
        mean_tokens=fmean(float(d.tokens_R.mean()) for d in done) if token_cost else None,
    )


def _free(_text: str) -> int:
    return 0


def limit_for_mean(
    task: Countdown, problems: Sequence[Problem], mean: float, *, repeats: bool
) -> float:
    """The limit under which blind search makes `mean` tries on average, exactly.

    Where it never makes so many, because it finds a hit sooner, the limit at which it has found all there is.
    """
    spaces = [Space.of(task, problem, _free) for problem in problems]
    sizes = np.array([len(space.is_hit_N) for space in spaces], dtype=np.float64)
    misses = sizes - np.array([space.is_hit_N.sum() for space in spaces])
    searching = np.ones(len(spaces))  # chance, by problem, that no try so far was a hit
    made, limit = 0.0, 0
    while (more := float(searching.mean())) > SURELY:
        if made + more >= mean:
            return limit + (mean - made) / more
        made += more
        drawn = 0 if repeats else limit
        left = np.maximum(sizes - drawn, 1)
        searching = searching * np.maximum(misses - drawn, 0) / left
        limit += 1
    return float(limit)


def mean_tries(thoughts: Iterable[str]) -> float | None:
    """Marked tries a thought; None where there is no thought."""
    counts = [len(marked_tries(thought)) for thought in thoughts]
    return fmean(counts) if counts else None


def measure_baselines(
    tasks: Sequence[Task],
    problems: Mapping[str, Sequence[Problem]],
    *,
    max_tokens: int,
    token_cost: TokenCost,
    model_tries: float | None,
    seed: int,
) -> Baselines:
    """Every baseline over `problems` (by task id): the test problems that the model is measured on.

    Blind search gets the model's token cap; where `model_tries` is given, also the limit under which it makes as
    many tries on average as the model.
    """
    constant, guess = {}, {}
    blind = []
    for task in tasks:
        test = problems[task.id]
        found = best_constant(task, task.problems("train", TRAIN_PROBLEMS, seed), test, seed=seed)
        if found is not None:
            constant[task.id] = found
        if not isinstance(task, Countdown):
            guess[task.id] = blind_guess(task, test, seed=seed)
        if not task.is_checkable:
            continue
        for repeats in (True, False) if lists_tries(task) else (True,):
            limits: list[tuple[float | None, int | None]] = [(None, max_tokens)]
            if model_tries is not None and lists_tries(task):
                limits.append((limit_for_mean(task, test, model_tries, repeats=repeats), None))
            for tries, tokens in limits:
                one = blind_search(
                    task,
                    test,
                    repeats=repeats,
                    max_tries=tries,
                    max_tokens=tokens,
                    token_cost=token_cost,
                    seed=seed,
                )
                blind.append(one)
    return Baselines(constant=constant, guess=guess, blind_search=blind)
