"""Who is drawn in which step, what is dropped, what waits for the next policy."""

import time
from collections import Counter

import pytest
import torch

from nalar.config import UserError
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.model.transformer import Transformer
from nalar.recipes.zero import zero_cpu
from nalar.rl import rollout as rollout_module
from nalar.rl.collector import Collector, collect
from nalar.rl.config import RolloutConfig
from nalar.rl.group import Carried
from nalar.rl.rollout import draw_problems
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.countdown import Countdown
from nalar.tasks.problem import Score

PLACES, SAMPLES = 4, 3


@pytest.fixture(scope="module")
def model(tokenizer):
    """Its samples end at many lengths."""
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "kv_lora_rank": 16,
        "initializer_range": 0.25,
    }
    model = Transformer(zero_cpu().model.model_copy(update=shape))
    model.initialize(seed=1)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.end_id] *= 3
    return model


@pytest.fixture
def collector(model, tokenizer, rl_config):
    """A collector on an engine with room for a few samples: groups come to their ends one after another."""

    def make(
        *,
        carried=None,
        tasks=None,
        steps=100,
        rows=8,
        minibatches=2,
        ahead=False,
        exact=False,
        **rollout,
    ):
        config = rl_config(
            steps=steps,
            minibatches=minibatches,
            prompts_per_step=PLACES,
            group_size=SAMPLES,
            max_tokens=24,
            rollout=RolloutConfig(**rollout),
        )
        tasks = tasks or [Countdown(), ChainSum()]
        limits = EngineConfig(max_model_len=64, max_num_seqs=rows, deterministic=exact)
        engine = Engine(model, limits)
        engine._overlaps = ahead  # as on a GPU: what is under way when a step is cut is lost
        return Collector(
            engine,
            tokenizer,
            tasks,
            config,
            lambda step, again: draw_problems(tasks, PLACES, 7, step, again),
            seed=7,
            carried=carried,
        )

    return make


def collected(collector, model, steps, first=0):
    found = []
    for step in range(first, first + steps):
        collector.load(model.state_dict(), version=step)
        found.append(collector.collect(step))
    return found


def contents(steps):
    return [
        [[(r.problem, r.response, r.score, r.reward) for r in group] for group in step.whole]
        for step in steps
    ]


@pytest.fixture
def rewards(monkeypatch):
    """Groups are silent or not by this list, and not behind its end."""

    def plan(*silent):
        left = list(silent)

        def totals(parts):
            is_silent = left.pop(0) if left else False
            return [0.0 if is_silent else float(i % 2) for i in range(len(parts))]

        monkeypatch.setattr(rollout_module, "totals", totals)

    return plan


def test_a_plain_step_is_every_group_whole(collector, model):
    (step,) = collected(collector(), model, 1)
    assert [len(group) for group in step.groups] == [SAMPLES] * PLACES
    assert (step.num_begun, step.num_unfinished, step.dropped) == (PLACES, 0, [])
    assert step.sampled_tokens == sum(len(r.response) for group in step.groups for r in group)


class Slow(ChainSum):
    """A verifier that takes as long as it likes."""

    def __init__(self, delays):
        super().__init__()
        self.delays = iter(delays)

    def score(self, problem, answer):
        time.sleep(next(self.delays))
        return super().score(problem, answer)


def test_how_long_verifiers_take_changes_nothing(collector, model, rewards):
    delays = [0.0, 0.02, 0.0, 0.005] * 200
    found = []
    for order in (delays, [0.0] * len(delays), delays[::-1]):
        rewards(True, False, True, True)
        running = collector(tasks=[Slow(order)], step_tokens=100, max_refills=1)
        found.append(contents(collected(running, model, 3)))
    assert found[0] == found[1] == found[2]
    assert sum(len(step) for step in found[0]) > 3


@pytest.mark.few(1)
@pytest.mark.parametrize("ahead", [True, False])
def test_what_is_cut_goes_on_where_it_was_with_numbers_of_its_own(collector, model, ahead):
    """By an unchanged policy every sample becomes what it would have become at once."""
    cut = collected(collector(exact=True, ahead=ahead, step_tokens=60, max_staleness=50), model, 6)
    assert all(step.num_unfinished for step in cut)
    apart = [r.response for step in cut for group in step.groups for r in group]
    assert any(len(set(response.versions)) > 1 for response in apart)
    whole = collected(collector(exact=True), model, 6)
    by_prompt = {group[0].prompt_ids: group for step in whole for group in step.groups}
    for step in cut:
        for group in step.groups:
            at_once = by_prompt[group[0].prompt_ids]
            for one, other in zip(group, at_once, strict=True):
                assert one.response.token_ids == other.response.token_ids
                assert one.response.logprobs == other.response.logprobs
                assert one.response.finish_reason == other.response.finish_reason


def test_what_a_policy_drew_stays_as_it_drew_it(collector, model):
    carried = Carried()
    running = collector(carried=carried, step_tokens=60, max_staleness=50)
    seen = {}
    for step in range(5):
        (found,) = collected(running, model, 1, first=step)
        for group in found.groups:
            for r in group:
                versions = r.response.versions
                assert list(versions) == sorted(versions) and versions[-1] <= step
        for group in carried.unfinished:
            for i, response in enumerate(group.responses):
                before = seen.get((group, i))
                if before is not None:
                    n = len(before)
                    assert response.token_ids[:n] == before.token_ids
                    assert response.logprobs[:n] == before.logprobs
                    assert response.versions[:n] == before.versions
                seen[group, i] = response
    assert seen


@pytest.mark.few(1)
@pytest.mark.parametrize("bound", [0, 1, 2])
def test_no_group_is_older_than_allowed_and_none_is_lost(collector, model, bound):
    carried = Carried()
    settings = {"minibatches": 1, "step_tokens": 1, "max_staleness": bound}
    steps = collected(collector(carried=carried, **settings), model, 6)
    ages = [
        step.version - version
        for step in steps
        for group in step.groups
        for r in group
        for version in r.response.versions
    ]
    assert max(ages) == bound
    begun = sum(step.num_begun for step in steps)
    assert begun == sum(len(step.whole) for step in steps) + len(carried.unfinished)
    assert all(step.num_begun + len(before) == PLACES for step, before in _with_rest(steps))


def _with_rest(steps):
    """Each step with what the one before has left."""
    left = [[], *[[None] * step.num_unfinished for step in steps[:-1]]]
    return zip(steps, left, strict=True)


def test_every_update_has_a_group_and_the_last_step_leaves_nothing(collector, model):
    steps = collected(collector(steps=4, step_tokens=1, max_staleness=9), model, 4)
    assert all(len(step.groups) >= 2 for step in steps)  # as there are minibatches
    assert [step.num_unfinished > 0 for step in steps] == [True, True, True, False]


def test_tasks_keep_their_share_whatever_waits(collector, model):
    steps = collected(collector(step_tokens=1, max_staleness=1), model, 12)
    counts = Counter(group[0].problem.task for step in steps for group in step.groups)
    assert abs(counts["countdown"] - counts["chain_sum"]) <= PLACES


def test_groups_of_equal_rewards_are_replaced_and_counted(collector, model, rewards):
    rewards(True, False, True, False, True, False)
    (step,) = collected(collector(max_refills=2), model, 1)
    assert (len(step.groups), len(step.dropped), step.num_begun) == (PLACES, 3, PLACES + 3)
    assert not any(rollout_module.is_silent(group) for group in step.groups)
    assert all(rollout_module.is_silent(group) for group in step.dropped)
    tasks = [group[0].problem.task for group in step.groups]
    assert Counter(tasks) == {"countdown": 2, "chain_sum": 2}
    problems = [group[0].problem.key for group in step.whole]
    assert len(set(problems)) == len(problems)


def test_refills_are_bounded(collector, model, rewards):
    rewards(*[True] * 50)
    (step,) = collected(collector(max_refills=2), model, 1)
    assert (step.groups, len(step.dropped), step.num_begun) == ([], 3 * PLACES, 3 * PLACES)


def test_without_refills_equal_groups_stay(collector, model, rewards):
    rewards(*[True] * 50)
    (step,) = collected(collector(), model, 1)
    assert (len(step.groups), step.dropped) == (PLACES, [])


def test_what_is_carried_survives_as_json(collector, model, tokenizer):
    settings = {"step_tokens": 60, "max_staleness": 50}
    straight = collected(collector(**settings), model, 5)
    carried = Carried()
    first = collected(collector(carried=carried, **settings), model, 2)
    assert any(one for group in carried.unfinished for one in group.judged)
    again = Carried.from_json(carried.to_json(), tokenizer)
    assert again.to_json() == carried.to_json()
    rest = collected(collector(carried=again, **settings), model, 3, first=2)
    assert contents([*first, *rest]) == contents(straight)


def test_unfinished_rollouts_that_nalar_did_not_write_are_named(tokenizer):
    with pytest.raises(
        UserError, match=r"what a checkpoint of RL remembers.*\n?.*at unfinished\.0\.problem"
    ):
        Carried.from_json({"unfinished": [{"seed": 1}]}, tokenizer)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"scores": []}, "one score for each"),
        ({"by_judge": [None] * 9}, "one score for each"),
        ({"responses": {"logprobs": []}}, "lists differ"),
        ({"responses": {"finish_reason": "stop"}, "scores": [None] * SAMPLES}, "without a score"),
        ({"responses": {"token_ids": [10**30]}}, "an id that is none"),
        ({"prompt_ids": [-1]}, "an id that is none"),
        ({"prompt_ids": []}, "an empty prompt"),
    ],
)
def test_unfinished_rollouts_that_do_not_fit_together_are_refused(tokenizer, change, named):
    response = {"token_ids": [1], "logprobs": [-1.0], "drawn": [True], "versions": [0]}
    response |= {"finish_reason": "abort"} | change.pop("responses", {})
    group = {"problem": {"task": "t", "key": "k", "prompt": "p"}, "prompt_ids": [1], "seed": 1}
    group |= {"step": 0, "again": 0, "slot": 0, "responses": [response] * SAMPLES}
    group |= {"scores": [None] * SAMPLES, "by_judge": [None] * SAMPLES} | change
    with pytest.raises(UserError, match=named):
        Carried.from_json({"unfinished": [group]}, tokenizer)


def test_a_step_that_is_broken_off_leaves_the_engine_free(collector, model):
    class Broken(ChainSum):
        def score(self, problem, answer):
            raise SystemExit("broken off")

    running = collector(tasks=[Broken()])
    with pytest.raises(SystemExit, match="broken off"):
        collected(running, model, 1)
    running = collector()
    real, calls = running._engine.step, iter(range(10))

    def step():
        if next(calls) == 4:
            raise KeyboardInterrupt
        return real()

    running._engine.step = step
    with pytest.raises(KeyboardInterrupt):
        collected(running, model, 1)
    running._engine.step = real
    (found,) = collected(running, model, 1)  # `load` refuses while a request is open
    assert contents([found]) == contents(collected(collector(), model, 1))


def test_verdicts_are_on_the_answers_that_they_stand_beside(model, tokenizer, rl_config):
    class Telling(ChainSum):
        def score(self, problem, answer):
            return Score(False, False, canonical=f"{problem.key} {answer}")

    task = Telling()
    problems = draw_problems([task], 3, 0, 0)
    engine = Engine(model, EngineConfig(max_model_len=64, max_num_seqs=4))
    config = rl_config(group_size=3, max_tokens=20)
    for group in collect(engine, tokenizer, [task], problems, config, seed=0):
        for r in group:
            assert r.score.canonical == f"{r.problem.key} {r.parsed.answer}"
