"""A learner is simulated: each level has a chance to be solved, which grows with practice at it."""

import json
import random
from collections import Counter

import pytest

from nalar.config import ConfigError
from nalar.rl.config import CurriculumConfig
from nalar.rl.curriculum import Curricula, Curriculum
from nalar.rl.group import Carried
from nalar.tasks.countdown import Countdown
from nalar.tasks.registry import open_task

WORD = "arithmetic,min_digits=1..4,max_digits=1..4"
LEVELS = [f"min_digits={n},max_digits={n}" for n in (1, 2, 3, 4)]


def curriculum(**settings):
    return Curriculum(open_task(WORD, at="test"), CurriculumConfig(**({"focus": 2.0} | settings)))


def play(made, rates, problems, seed=0, group=8):
    """Draw problems and show what a learner of these chances would do; how often each level was drawn."""
    drawn, luck = Counter(), random.Random(f"luck {seed}")
    for step in range(problems):
        problem = made.draw(random.Random(f"{seed}/{step}"), "train")
        drawn[problem.level] += 1
        chance = rates[problem.level]
        made.see(problem, sum(luck.random() < chance for _ in range(group)) / group)
    return drawn


def test_levels_solved_about_half_the_time_are_drawn_most_and_all_are_drawn():
    made = curriculum()
    drawn = play(made, dict(zip(LEVELS, (1.0, 0.5, 0.02, 0.0), strict=True)), 600)
    assert drawn.most_common(1)[0][0] == LEVELS[1] and drawn[LEVELS[1]] > 350
    assert all(drawn[level] > 0.6 * 600 * 0.2 / 4 for level in LEVELS)
    assert made.rates()[LEVELS[1]] == pytest.approx(0.5, abs=0.1)
    assert made.rates()[LEVELS[0]] > 0.9 and made.rates()[LEVELS[3]] < 0.1


def learn(made, problems, seed):
    """A learner whose chance at a level grows with its practice there, once the level before it goes well.

    How many problems taught something, with 8 tries of which some but not all were right; its chances at the end.
    """
    skill = dict(zip(LEVELS, (0.3, 0.05, 0.01, 0.0), strict=True))
    luck, taught = random.Random(f"luck {seed}"), 0
    for step in range(problems):
        problem = made.draw(random.Random(f"{seed}/{step}"), "train")
        at = LEVELS.index(problem.level)
        success = sum(luck.random() < skill[problem.level] for _ in range(8)) / 8
        made.see(problem, success)
        if 0 < success < 1:
            taught += 1
            ready = skill[LEVELS[at - 1]] if at else 1.0
            skill[problem.level] = min(0.98, skill[problem.level] + 0.005 * ready)
    return taught, list(skill.values())


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(3))
def test_a_learner_is_taught_more_than_by_even_draws(seed):
    made = curriculum()
    taught, skill = learn(made, 1200, seed)
    evenly, plain = learn(curriculum(explore_frac=1.0), 1200, seed)
    assert taught > 1.08 * evenly and sum(skill) > sum(plain)
    assert min(made.shares().values()) >= 0.05


def test_what_was_long_ago_is_forgotten():
    made = curriculum(memory_problems=10)
    play(made, dict.fromkeys(LEVELS, 0.0), 200)
    assert max(made.rates().values()) < 0.1
    play(made, dict.fromkeys(LEVELS, 1.0), 400, seed=1)
    assert min(made.rates().values()) > 0.85


def test_shares_on_numbers_one_can_do_on_paper():
    made = curriculum(explore_frac=0.4, focus=1.0, memory_problems=1e6)
    assert made.rates() == dict.fromkeys(LEVELS, 0.5)
    assert made.shares() == pytest.approx(dict.fromkeys(LEVELS, 0.25))
    made.restore(dict(zip(LEVELS, ((2.25, 4.5), (0, 2), (4.25, 4.5), (0.75, 3.5)), strict=True)))
    # (2.25+0.25)/(4.5+0.5), (0+0.25)/(2+0.5), (4.25+0.25)/(4.5+0.5), (0.75+0.25)/(3.5+0.5)
    assert list(made.rates().values()) == pytest.approx([1 / 2, 1 / 10, 9 / 10, 1 / 4])
    weights = [1, 9 / 25, 9 / 25, 3 / 4]
    want = [0.1 + 0.6 * weight / sum(weights) for weight in weights]
    assert list(made.shares().values()) == pytest.approx(want)
    assert sum(made.shares().values()) == pytest.approx(1)


def test_a_level_seen_once_fades_by_its_memory():
    made = curriculum(memory_problems=4)
    problem = made.draw(random.Random(0), "train")
    for success in (1.0, 0.5, 0.0):
        made.see(problem, success)
    assert made.state()[problem.level] == pytest.approx([0.75**2 + 0.75 * 0.5, 0.75**2 + 0.75 + 1])


def test_a_curriculum_stopped_and_restored_goes_on_the_same():
    rates = dict(zip(LEVELS, (0.9, 0.6, 0.3, 0.1), strict=True))
    whole, first, second = curriculum(), curriculum(), curriculum()
    play(whole, rates, 137)
    play(first, rates, 137)
    carried = Carried(levels={"arithmetic": first.state()})
    saved = json.loads(json.dumps(carried.to_json()))
    second.restore(Carried.from_json(saved, None).levels["arithmetic"])
    assert second.state() == whole.state()
    steps = [random.Random(step) for step in range(50)]
    again = [random.Random(step) for step in range(50)]
    assert [whole.draw(r, "train") for r in steps] == [second.draw(r, "train") for r in again]
    assert play(whole, rates, 60, seed=3) == play(second, rates, 60, seed=3)
    assert second.state() == whole.state()


def test_a_state_is_a_copy():
    made = curriculum()
    state = made.state()
    made.see(made.draw(random.Random(0), "train"), 1.0)
    assert state == curriculum().state() != made.state()


def test_tasks_without_levels_and_runs_without_a_focus_are_drawn_from_as_ever():
    tasks = [open_task(WORD, at="test"), Countdown()]
    assert Curricula(tasks, CurriculumConfig(), {}).of(tasks) == tasks
    [chooser, same] = Curricula(tasks, CurriculumConfig(focus=2), {}).of(tasks)
    assert isinstance(chooser, Curriculum) and same is tasks[1]


def test_a_task_named_twice_has_one_curriculum():
    task = open_task(WORD, at="test")
    one, other = Curricula([task, task], CurriculumConfig(focus=2), {}).of([task, task])
    assert one is other


@pytest.mark.parametrize("success", [-0.1, 1.1, float("nan")])
def test_a_success_that_is_no_share_is_refused(success):
    made = curriculum()
    with pytest.raises(ValueError, match="0 to 1"):
        made.see(made.draw(random.Random(0), "train"), success)


def test_problems_and_states_of_other_levels_are_refused():
    made = curriculum()
    with pytest.raises(ValueError, match="level None"):
        made.see(Countdown().draw(random.Random(0), "train"), 0.5)
    with pytest.raises(ConfigError, match="curriculum of arithmetic"):
        made.restore({"num_numbers=3": (1.0, 2.0)})
