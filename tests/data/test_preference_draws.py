"""Judgements from tasks that rate answers: clear, balanced in length and place, split by the problem's hash."""

import random
from dataclasses import dataclass
from statistics import fmean

import pytest

from nalar.config import ConfigError
from nalar.data.preference_draws import draw_labels, draw_pairs, rated
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.problem import Problem, split_of
from nalar.tasks.rated import Variant


@dataclass
class Greeting:
    """Say hello to a name: longer is not better, and not worse."""

    gap: float = 1.0
    id = "greeting"

    def draw(self, rng, split):
        while True:
            key = f"{rng.choice('abcdefgh')}{rng.randrange(400)}"
            if split_of(key) == split:
                return Problem(self.id, key, f"greet {key}")

    def variants(self, rng, problem):
        low = 1.0 - self.gap
        found = [
            Variant(f"hello {problem.key}", 1.0, None),
            Variant(f"a very good day to {problem.key}", 1.0 - 0.1 * self.gap, None),
            Variant("hello", low, "no name"),
            Variant(f"hello {problem.key} hello hello hello", low, "repeats"),
        ]
        rng.shuffle(found)
        return found

    def quality(self, problem, answer):
        return float(problem.key in answer)


def pairs(count=400, split="train", seed=0, **changes):
    return draw_pairs(
        [Greeting()], count, **({"split": split, "seed": seed, "min_gap": 0.5} | changes)
    )


def test_pairs_are_clear_and_as_long_on_either_side():
    found = pairs()
    assert all(one.quality[0] - one.quality[1] >= 0.5 for one in found)
    assert {one.flaw for one in found} == {"no name", "repeats"}
    better, worse = (
        fmean(len(getattr(one, side).text) for one in found) for side in ("better", "worse")
    )
    assert abs(better - worse) < 0.2
    longer = sum(len(one.worse.text) > len(one.better.text) for one in found)
    assert 100 < longer < 300


def test_the_better_side_is_first_about_half_the_time():
    assert 160 < sum(one.better_first for one in pairs()) < 240


def test_the_same_seed_draws_the_same_and_another_others():
    assert pairs(50) == pairs(50) == pairs(60)[:50]
    assert pairs(50) != pairs(50, seed=1)


def test_splits_share_no_problem():
    prompts = {
        split: {one.messages[0]["content"] for one in pairs(300, split)}
        for split in ("train", "valid", "test")
    }
    assert not prompts["train"] & prompts["test"] and not prompts["valid"] & prompts["test"]
    assert all(
        split_of(p.removeprefix("greet ")) == split for split, ps in prompts.items() for p in ps
    )


def test_tasks_take_turns():
    class Other(Greeting):
        id = "other"

        def draw(self, rng, split):
            return Problem(self.id, "x", "other")

    found = draw_pairs([Greeting(), Other()], 10, split="train", seed=0, min_gap=0.5)
    assert [one.messages[0]["content"] == "other" for one in found] == [False, True] * 5


def test_no_clear_pair_is_an_error_and_no_endless_search():
    with pytest.raises(ConfigError, match=r"greeting(.|\n)*clearly apart"):
        draw_pairs([Greeting(gap=0.2)], 3, split="train", seed=0, min_gap=0.5)
    with pytest.raises(ConfigError, match="clearly apart"):
        draw_labels([Greeting(gap=0.0)], 3, split="train", seed=0, min_gap=0.5)


def test_labels_are_half_safe_and_a_bad_thought_is_not_made_good_by_its_answer():
    found = draw_labels([Greeting()], 400, split="train", seed=0, min_gap=0.5)
    assert sum(one.better is not None for one in found) == 200
    assert all((one.better is None) != (one.worse is None) for one in found)
    bad = {"hello"}

    def is_bad(text):
        return text in bad or "hello hello" in text

    for one in found:
        (answer,) = one.answers
        assert (one.worse is not None) == (is_bad(answer.text) or is_bad(answer.thought))
    assert any(one.worse and not is_bad(one.worse.text) for one in found)
    assert any(not answer.thought for one in found for answer in one.answers)


def test_a_task_that_does_not_rate_is_refused():
    with pytest.raises(ConfigError, match="chain_sum"):
        rated(ChainSum(), at="tasks")
    assert rated(Greeting(), at="tasks").variants(random.Random(0), Problem("g", "k", "p"))
