"""Baselines on spaces small enough to do by hand."""

import random

import numpy as np
import pytest

from nalar.evals.baselines import (
    Searches,
    Space,
    best_constant,
    blind_search,
    limit_for_mean,
    mean_tries,
    measure_baselines,
    search,
)
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.config import CountdownConfig
from nalar.tasks.countdown import Countdown
from nalar.tasks.graph import GraphPath
from nalar.tasks.problem import Problem

RUNS = 40_000
# four tries of 10 tokens, one of them a hit whose answer takes 5 more
SPACE = Space(np.array([False, True, False, False]), np.array([10, 15, 10, 10]))


def run(
    repeats: bool, *, max_tries: float | None = None, max_tokens: int | None = None
) -> Searches:
    rng = np.random.default_rng(0)
    return search(
        SPACE, rng, runs=RUNS, repeats=repeats, max_tries=max_tries, max_tokens=max_tokens
    )


@pytest.mark.parametrize(
    ("repeats", "max_tries", "solved", "tries"),
    [
        (True, 1, 1 / 4, 1.0),
        (True, 2, 1 - (3 / 4) ** 2, 1 + 3 / 4),
        (False, 2, 2 / 4, 1 + 3 / 4),
        (False, 4, 1.0, (1 + 2 + 3 + 4) / 4),
        (False, 9, 1.0, (1 + 2 + 3 + 4) / 4),
        (False, 2.5, (2 + 0.5) / 4, 1 + 3 / 4 + 0.5 * 2 / 4),
    ],
)
def test_blind_search_solves_what_can_be_counted_on_paper(repeats, max_tries, solved, tries):
    found = run(repeats, max_tries=max_tries)
    assert found.solved_R.mean() == pytest.approx(solved, abs=0.01)
    assert found.tries_R.mean() == pytest.approx(tries, abs=0.02)


@pytest.mark.parametrize(
    ("max_tokens", "solved"),
    [(14, 0), (15, 1), (24, 1), (25, 2), (35, 3), (44, 3), (45, 4)],
)
def test_a_hit_counts_only_where_its_answer_fits_under_the_cap(max_tokens, solved):
    found = run(False, max_tokens=max_tokens)
    assert found.solved_R.mean() == pytest.approx(solved / 4, abs=0.01)
    assert found.tokens_R.max() <= max_tokens


def test_with_repeats_under_a_cap_matches_the_same_number_of_tries():
    assert run(True, max_tokens=35).solved_R.mean() == pytest.approx(1 - (3 / 4) ** 3, abs=0.01)


def test_searching_without_repeats_makes_no_try_twice():
    found = run(False, max_tries=4)
    assert set(found.tries_R) == {1, 2, 3, 4}
    # all three misses come before the hit exactly where it took four tries
    assert set(found.tokens_R[found.tries_R == 4]) == {45}


def test_blind_search_on_a_problem_agrees_with_the_share_of_hits_among_its_tries():
    task = Countdown()
    problem = task.problems("test", 1, 0)[0]
    tries = task.tries(problem.data["numbers"])
    share = np.mean([t.value == problem.data["target"] for t in tries])
    found = blind_search(task, [problem], repeats=True, max_tries=1, runs=RUNS, seed=0)
    assert found.pass_at_1.mean == pytest.approx(share, abs=0.01)
    everything = blind_search(task, [problem], repeats=False, max_tries=len(tries), runs=50, seed=0)
    assert everything.pass_at_1.mean == 1.0
    assert everything.mean_tokens is None


def test_a_line_costs_what_the_corpus_would_write():
    task = Countdown()
    problem = task.problems("test", 1, 0)[0]
    seen: list[str] = []
    Space.of(task, problem, lambda text: seen.append(text) or 1)
    assert any(text.endswith("✗\n") for text in seen)
    assert task.gold(problem) in seen
    assert all(not text.endswith("✓\n") for text in seen)


@pytest.mark.parametrize("repeats", [True, False])
def test_the_limit_for_a_mean_gives_that_mean(repeats):
    task = Countdown()
    problems = task.problems("test", 5, 0)
    limit = limit_for_mean(task, problems, 4.2, repeats=repeats)
    found = blind_search(task, problems, repeats=repeats, max_tries=limit, runs=RUNS, seed=0)
    assert limit > 4.2
    assert found.mean_tries == pytest.approx(4.2, abs=0.03)


def test_a_mean_that_is_never_reached_gives_a_search_to_the_end():
    task = Countdown()
    problems = task.problems("test", 5, 0)
    limit = limit_for_mean(task, problems, 1000, repeats=False)
    assert limit <= max(len(task.tries(p.data["numbers"])) for p in problems)
    found = blind_search(task, problems, repeats=False, max_tries=limit, runs=200, seed=0)
    assert found.pass_at_1.mean == 1.0


def test_a_search_without_a_limit_is_refused():
    with pytest.raises(ValueError, match="would not end"):
        blind_search(Countdown(), [], repeats=True, seed=0)


def test_the_best_constant_is_chosen_on_train_and_reported_on_test():
    def chain(text: str, total: int) -> Problem:
        return Problem(task="chain_sum", key=text, prompt=text, data={"total": total})

    train = [chain("3+4", 7), chain("9-2", 7), chain("1+1", 2)]
    test = [chain("2+5", 7), chain("1+2", 3), chain("2+2", 4), chain("8-1", 7)]
    found = best_constant(ChainSum(), train, test, seed=0)
    assert found is not None
    assert found.answer == "7"
    assert found.train_frac == pytest.approx(2 / 3)
    assert found.pass_at_1.mean == 0.5


def test_tries_are_counted_by_their_marks():
    assert mean_tries(["1+2=3✗\n3*4=12✓", "", "2*2=4✗"]) == 1.0
    assert mean_tries([]) is None


@pytest.mark.slow
def test_all_baselines_take_seconds_and_repeat():
    tasks = [Countdown(), ChainSum()]
    problems = {task.id: task.problems("test", 40, 0) for task in tasks}
    random.seed(1)

    def measure():
        return measure_baselines(
            tasks, problems, max_tokens=264, token_cost=len, model_tries=7.3, seed=0
        )

    found = measure()
    assert found == measure()
    assert [b.repeats for b in found.blind_search] == [True, True, False, False]
    assert set(found.constant) == {"countdown", "chain_sum"}
    by_limit = {(b.repeats, b.max_tokens): b.pass_at_1.mean for b in found.blind_search}
    assert by_limit[False, 264] > by_limit[True, 264]


@pytest.mark.parametrize("limits", [{"max_tries": 0.0}, {"max_tokens": 3}])
@pytest.mark.parametrize("repeats", [True, False])
def test_a_limit_that_allows_no_try_is_a_search_that_finds_nothing(repeats, limits):
    """A base that makes no tries gives blind search none either."""
    found = run(repeats, **limits)
    assert not found.solved_R.any()
    assert not found.tries_R.any()
    assert not found.tokens_R.any()


@pytest.mark.slow
def test_where_tries_cannot_be_listed_they_are_guessed():
    task = Countdown(CountdownConfig(num_numbers=6, max_number=25, max_intermediate=1000))
    problems = task.problems("test", 3, 0)
    found = measure_baselines(
        [task], {task.id: problems}, max_tokens=264, token_cost=len, model_tries=3.0, seed=0
    )
    assert [(b.repeats, b.max_tokens) for b in found.blind_search] == [(True, 264)]
    assert found.blind_search[0].pass_at_1.mean < 0.2
    with pytest.raises(ValueError, match="listed"):
        blind_search(task, problems, repeats=False, max_tries=3, seed=0)


def test_a_blind_guess_is_as_good_as_chance():
    problems = {"chain_sum": ChainSum().problems("test", 30, 0)}
    found = measure_baselines(
        [ChainSum()], problems, max_tokens=264, token_cost=len, model_tries=None, seed=0
    )
    assert 0.01 < found.guess["chain_sum"].pass_at_1.mean < 0.1
    assert found.blind_search == []


def test_tasks_that_are_easy_to_check_are_searched_by_guesses():
    task = GraphPath()
    problems = {task.id: task.problems("test", 10, 0)}
    found = measure_baselines(
        [task], problems, max_tokens=100, token_cost=len, model_tries=None, seed=0
    )
    (blind,) = found.blind_search
    assert blind.pass_at_1.mean > found.guess["graph"].pass_at_1.mean > 0.2
