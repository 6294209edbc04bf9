"""A share of groups is asked without thinking: exactly that share, remembered wherever the group goes."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from nalar.data.dialogue import encode_prompt, parse
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.model.transformer import Transformer
from nalar.recipes.zero import zero_cpu
from nalar.rl.alarms import Watch
from nalar.rl.collector import Collector
from nalar.rl.config import RewardConfig, RLConfig, RolloutConfig
from nalar.rl.group import Carried
from nalar.rl.progress import progress
from nalar.rl.response import Response
from nalar.rl.rollout import Collected, draw_problems, judge_response, rewarded
from nalar.rl.store import load_rollouts, path_of, read_rows, save_rollouts
from nalar.rl.thinking import thinks
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.countdown import Countdown

PLACES = 4
TASKS = [Countdown(), ChainSum()]


def closed(config, *, seed, steps, task):
    """Of a task's groups over steps: how many were asked without thinking."""
    slots = range(task, config.prompts_per_step, len(config.tasks))
    return sum(
        not thinks(config, seed=seed, step=step, slot=slot)
        for step in range(steps)
        for slot in slots
    )


@pytest.mark.parametrize("frac", [0.01, 0.1, 0.25, 1 / 3, 0.5, 0.99])
@pytest.mark.parametrize(("places", "tasks"), [(4, 1), (16, 2), (5, 3), (3, 4)])
def test_each_tasks_share_is_exact_to_one_group_after_any_number_of_steps(frac, places, tasks):
    names = ("countdown", "chain_sum", "linear", "arithmetic")[:tasks]
    config = RLConfig(
        steps=9, tasks=names, prompts_per_step=places, minibatches=1, no_thinking_frac=frac
    )
    for seed in range(5):
        for task in range(tasks):
            each = len(range(task, places, tasks))
            for steps in (1, 2, 7, 40):
                found = closed(config, seed=seed, steps=steps, task=task)
                assert abs(found - frac * each * steps) < 1 + 1e-9


def test_the_seed_chooses_and_a_share_of_none_changes_nothing():
    config = RLConfig(steps=9, prompts_per_step=16, no_thinking_frac=0.3)
    asked = [
        tuple(thinks(config, seed=seed, step=step, slot=i) for step in range(3) for i in range(16))
        for seed in range(8)
    ]
    assert len(set(asked)) > 4
    none = RLConfig(steps=9, prompts_per_step=16)
    assert all(thinks(none, seed=1, step=s, slot=i) for s in range(9) for i in range(16))


def test_a_share_that_leaves_nobody_thinking_is_refused():
    for frac in (1.0, -0.1, float("nan")):
        with pytest.raises(ValidationError):
            RLConfig(steps=9, no_thinking_frac=frac)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Its samples end at many lengths, some of them behind a mark of a thought."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "kv_lora_rank": 16}
    config = zero_cpu().model.model_copy(update=shape | {"initializer_range": 0.25})
    model = Transformer(config)
    model.initialize(seed=1)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.end_id] *= 3
    return model


@pytest.fixture
def collector(model, tokenizer, rl_config):
    def make(carried=None, **rollout):
        config = rl_config(
            steps=100,
            prompts_per_step=PLACES,
            group_size=3,
            max_tokens=24,
            no_thinking_frac=0.5,
            rollout=RolloutConfig(**rollout),
        )
        return Collector(
            Engine(model, EngineConfig(max_model_len=64, max_num_seqs=8)),
            tokenizer,
            TASKS,
            config,
            lambda step, again: draw_problems(TASKS, PLACES, 7, step, again),
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
    return [[[(r.problem, r.thinking, r.response) for r in g] for g in s.whole] for s in steps]


def test_groups_are_asked_and_read_as_their_place_says(collector, model, tokenizer):
    steps, modes = collected(collector(), model, 2), Counter()
    for group in (group for step in steps for group in step.whole):
        for r in group:
            messages = [{"role": "user", "content": r.problem.prompt}]
            asked = encode_prompt(tokenizer, messages, thinking=r.thinking)
            assert r.prompt_ids == tuple(asked)
            assert r.parsed == parse(tokenizer, r.response.token_ids, thinking=r.thinking)
        modes[group[0].problem.task, group[0].thinking] += 1
    assert set(modes.values()) == {2}  # each task, each way


def test_a_group_that_waits_is_read_as_it_was_asked(collector, model, tokenizer):
    settings = {"step_tokens": 40, "max_staleness": 3}
    straight = collected(collector(**settings), model, 4)
    carried = Carried()
    first = collected(collector(carried, **settings), model, 2)
    document = json.loads(json.dumps(carried.to_json()))
    assert {group["thinking"] for group in document["unfinished"]} == {True, False}
    again = Carried.from_json(document, tokenizer)
    rest = collected(collector(again, **settings), model, 2, first=2)
    assert contents([*first, *rest]) == contents(straight)
    for group in document["unfinished"]:
        del group["thinking"]  # as an older nalar wrote it
    assert all(group.thinking for group in Carried.from_json(document, tokenizer).unfinished)


def test_rollouts_on_the_disk_say_how_they_were_asked(collector, model, tokenizer, tmp_path):
    (step,) = collected(collector(), model, 1)
    save_rollouts(tmp_path, 1, step)
    path = path_of(tmp_path, 1)
    assert contents([load_rollouts(path, tokenizer)]) == contents([step])
    assert load_rollouts(path, tokenizer).groups == step.groups
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["thinking"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert all(row.thinking for row in read_rows(path))


@pytest.fixture
def reward(tokenizer):
    """What a reply to a sum earns, in parts."""

    def reward(text, *, thinking, **weights):
        task = ChainSum()
        problem = task.problems("train", 1, seed=0)[0]
        ids = tokenizer.encode(text.format(task.gold(problem)), allow_special=True)
        response = Response(
            tuple(ids), (-1.0,) * len(ids), (True,) * len(ids), (0,) * len(ids), "stop"
        )
        config = RLConfig(steps=1, group_size=2, reward=RewardConfig(**weights))
        verdict = judge_response(
            tokenizer, task, problem, response, config.reward, thinking=thinking
        )
        pair = rewarded(problem, (1,), [response] * 2, [verdict] * 2, config, thinking=thinking)
        return dict(pair[0].parts)

    return reward


def test_a_thought_where_none_was_asked_for_earns_nothing(reward):
    whole = {"well_formed": 0.1, "correct": 1.0}
    none = {"well_formed": 0.0, "correct": 0.0}
    assert reward("{}<|end|>", thinking=False) == whole
    assert reward("1</think>{}<|end|>", thinking=False) == none
    assert reward("<think></think>{}<|end|>", thinking=False) == none
    assert reward("1</think>{}<|end|>", thinking=True) == whole
    assert reward("{}<|end|>", thinking=True) == none  # never closed its thought


def test_without_a_thought_the_language_is_the_answers(reward):
    english, indonesian = "this is what the sum is", "ini adalah yang kita cari"
    for thinking, mark in ((True, "</think>{}"), (False, "")):
        earned = [
            reward(f"{text}{mark}<|end|>", thinking=thinking, language=1.0, target_language="id")
            for text in (english, indonesian)
        ]
        assert [parts["language"] for parts in earned] == [0.0, 1.0]


def test_a_step_reports_each_way_of_asking_apart(make_rollout):
    def group(correct, thinking, length):
        one = make_rollout([1], range(length))
        score = replace(one.score, correct=correct)
        return [replace(one, score=score, thinking=thinking)]

    groups = [group(True, True, 9), group(False, True, 7), group(True, False, 2)]
    told = progress(1, [ChainSum()], Collected(0, groups), [], by_mode=True)
    assert told.mode_accuracy == {"chain_sum,thinking=on": 0.5, "chain_sum,thinking=off": 1.0}
    assert told.mode_tokens == {"chain_sum,thinking=on": 8.0, "chain_sum,thinking=off": 2.0}
    assert progress(1, [ChainSum()], Collected(0, groups[:2]), []).mode_accuracy == {}


@pytest.mark.parametrize("frac", [0.0, 0.25])
def test_lengths_are_compared_with_those_that_were_asked_alike(frac):
    """Short replies come in with a share that was asked so: that alone is no collapse; short thoughts are."""
    watch = Watch(RLConfig(steps=60, no_thinking_frac=frac), "float32")

    def names(step, mean, **by_mode):
        values = {"response_tokens/t": mean} | {
            f"mode_tokens/t,thinking={mode}": tokens for mode, tokens in by_mode.items()
        }
        return [alarm.name for alarm in watch.see(step, values)]

    def said(steps, mean, **by_mode):
        return {name for step in steps for name in names(step, mean, **by_mode)}

    assert not said(range(8), 80, on=100, off=8)
    assert bool(said(range(8, 20), 30, on=100, off=8)) == (frac == 0)
    assert ("responses collapse" in said(range(20, 40), 30, on=20, off=20)) == (frac > 0)
