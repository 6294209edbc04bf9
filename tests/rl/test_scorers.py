"""Rewards that models give: what they read, when they have a say, and that nothing but its group moves a reward."""

import math
from dataclasses import replace

import pytest

from nalar.config import ConfigError, UserError
from nalar.data.config import TokenizerConfig
from nalar.data.dialogue import encode_prompt, parse
from nalar.data.preferences import Answer, scored_ids
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.model.transformer import Transformer
from nalar.recipes.zero import zero_cpu
from nalar.rl.collector import Collector
from nalar.rl.config import RewardConfig, RewardWeights, RLConfig
from nalar.rl.group import Group
from nalar.rl.progress import progress
from nalar.rl.response import Response
from nalar.rl.rewards import Facts, gold_reward, weighted_parts
from nalar.rl.rollout import Collected, Judged, draw_problems, rewarded
from nalar.rl.scorers import Scorers, read_ids
from nalar.rl.store import RolloutRow, save_rollouts
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.countdown import Countdown
from nalar.tasks.problem import Problem, Score

ASKED = [{"role": "user", "content": "1+1"}]


class Counting:
    """A model whose score is the length of what it reads, less 20; it remembers what it was given together."""

    longest = 500

    def __init__(self, tokenizer):
        self.tokenizer, self.flops, self.seen = tokenizer, 0.0, []

    def score(self, sequences):
        self.seen.append([tuple(one) for one in sequences])
        self.flops += 1.0
        return [len(one) - 20.0 for one in sequences]


@pytest.fixture
def counting(tokenizer):
    return Counting(tokenizer)


def response_of(tokenizer, text, thought="", *, closed=True):
    ids = [*tokenizer.encode(thought), tokenizer.end_think_id, *tokenizer.encode(text)]
    ids += [tokenizer.end_id] if closed else []
    n = len(ids)
    return Response(tuple(ids), (-1.0,) * n, (True,) * n, (0,) * n, "stop" if closed else "length")


@pytest.fixture
def make_group(tokenizer):
    def make(*responses, task="chain_sum", error=None):
        problem = Problem(task, "chain_sum:1+1", "1+1")
        prompt = tuple(encode_prompt(tokenizer, ASKED))
        judged = [
            Judged(parse(tokenizer, one.token_ids), Score(True, True, error=error))
            for one in responses
        ]
        return Group(problem, prompt, 0, list(responses), judged)

    return make


def scoring(name="preference", weight=0.5, **more):
    return RewardConfig(**({name: weight, f"{name}_model": "folder"} | more))


@pytest.mark.parametrize(("name", "kind"), [("preference", "preference"), ("safety", "safety")])
@pytest.mark.parametrize("thought", ["", "let me see"])
def test_a_model_reads_in_rl_what_it_was_trained_on(tokenizer, name, kind, thought):
    said = response_of(tokenizer, "it is 2", thought)
    found = read_ids(tokenizer, encode_prompt(tokenizer, ASKED), said.token_ids, name)
    assert list(found) == scored_ids(tokenizer, tuple(ASKED), Answer("it is 2", thought), kind)


def test_an_answer_without_thinking_is_read_likewise(tokenizer):
    prompt = encode_prompt(tokenizer, ASKED, thinking=False)
    said = (*tokenizer.encode("it is 2"), tokenizer.end_id)
    for kind in ("preference", "safety"):
        expected = scored_ids(tokenizer, tuple(ASKED), Answer("it is 2"), kind)
        assert list(read_ids(tokenizer, prompt, said, kind)) == expected


def test_whole_responses_of_a_group_are_scored_together_and_no_others(
    tokenizer, counting, make_group
):
    whole, longer = response_of(tokenizer, "2"), response_of(tokenizer, "it is 2", "hm")
    cut, blank = response_of(tokenizer, "2", closed=False), response_of(tokenizer, " ")
    group = make_group(whole, cut, longer, blank)
    scorers = Scorers({"preference": counting}, tokenizer)
    found = scorers.scores(group, scoring())
    assert [set(one) for one in found] == [{"preference"}, set(), {"preference"}, set()]
    assert len(counting.seen) == 1 and len(counting.seen[0]) == 2
    lengths = [len(ids) for ids in counting.seen[0]]
    assert [one["preference"] for one in found if one] == [
        pytest.approx(1 / (1 + math.exp(20 - n))) for n in lengths
    ]
    assert scorers.used_flops() == 1 and scorers.used_flops() == 0


def test_a_task_without_the_weight_is_not_scored(tokenizer, counting, make_group):
    config = scoring(by_task={"countdown": RewardWeights()})
    scorers = Scorers({"preference": counting}, tokenizer)
    assert scorers.scores(make_group(response_of(tokenizer, "2"), task="countdown"), config) == [{}]
    assert counting.seen == []
    only = scoring(weight=0.0, by_task={"countdown": RewardWeights(preference=1.0)})
    (found,) = scorers.scores(make_group(response_of(tokenizer, "2"), task="countdown"), only)
    assert "preference" in found


def test_what_has_no_verdict_is_not_scored(tokenizer, counting, make_group):
    group = make_group(response_of(tokenizer, "2"), error="dead")
    assert Scorers({"preference": counting}, tokenizer).scores(group, scoring()) == [{}]
    assert counting.seen == []


def test_a_foreign_tokenizer_is_refused(tokenizer, counting):
    counting.tokenizer = Tokenizer.train(["other"] * 4, TokenizerConfig(vocab_size=262))
    with pytest.raises(UserError, match=r"rl.reward.safety_model.*262 ids"):
        Scorers({"safety": counting}, tokenizer)


def test_parts_are_weighted_scores_and_silent_where_models_have_no_say():
    score, config = Score(True, True), scoring(correct=1.0, well_formed=0.0)
    whole = Facts("chain_sum", score, is_whole=True, scores={"preference": 0.8})
    assert weighted_parts(whole, config) == {"correct": 1.0, "preference": pytest.approx(0.4)}
    assert weighted_parts(replace(whole, scores=None), config) == {"correct": 1.0}
    assert weighted_parts(replace(whole, scores={}), config) == {"correct": 1.0, "preference": 0.0}
    both = scoring(safety=2.0, safety_model="other", well_formed=0.0)
    assert gold_reward(both)(Problem("chain_sum", "k", "p"), score) == 1.0 + 0.5 + 2.0


@pytest.mark.parametrize(
    ("settings", "at"),
    [
        ({"preference": 0.5}, "rl.reward.preference_model"),
        ({"preference_model": "x"}, "rl.reward.preference_model"),
        ({"safety": 0.5, "preference_model": "x"}, "rl.reward.preference_model"),
        ({"safety": 0.5}, "rl.reward.safety_model"),
        ({"by_task": {"a": RewardWeights(safety=1.0)}}, "rl.reward.safety_model"),
        ({"model_rewards_last_steps": 3}, "rl.reward.model_rewards_last_steps"),
    ],
)
def test_a_weight_without_a_model_and_a_model_without_a_weight_are_refused(settings, at):
    with pytest.raises(ConfigError) as error:
        RewardConfig(**settings)
    assert error.value.at == at


def test_models_have_a_say_in_the_last_steps_alone():
    def says(**more):
        config = RLConfig(steps=10, reward=scoring(**more))
        return [config.reward.models_count(step, config.steps) for step in range(10)]

    assert says() == [True] * 10
    assert says(model_rewards_last_steps=3) == [False] * 7 + [True] * 3
    assert says(model_rewards_last_steps=30) == [True] * 10
    assert not RewardConfig().models_count(9, 10)


@pytest.fixture(scope="module")
def model(tokenizer):
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "kv_lora_rank": 16,
        "initializer_range": 0.25,
    }
    model = Transformer(zero_cpu().model.model_copy(update=shape))
    model.initialize(seed=1)
    return model


class Even(Countdown):
    """Whatever is said is right."""

    def score(self, problem, answer):
        return Score(True, True)


def collected(model, tokenizer, counting, steps, **reward):
    """Steps of a collector whose samples are never whole by themselves: each is made an answer of its own length."""
    tasks = [Even(), ChainSum()]
    config = RLConfig(
        steps=4,
        tasks=("countdown", "chain_sum"),
        prompts_per_step=4,
        group_size=3,
        max_tokens=12,
        minibatches=1,
        reward=scoring(well_formed=0.0, **reward),
    )
    collector = Collector(
        Engine(model, EngineConfig(max_model_len=64)),
        tokenizer,
        tasks,
        config,
        lambda step, again: draw_problems(tasks, 4, 7, step, again),
        seed=7,
        scorers=Scorers({"preference": counting}, tokenizer),
    )
    found = []
    for step in steps:
        collector.load(model.state_dict(), version=step)
        found.append(collector.collect(step))
    return found


@pytest.fixture
def answering(monkeypatch, tokenizer):
    """Every response is read as a whole one, with the answer that its ids spell."""
    from nalar.rl import rollout as rollout_module
    from nalar.rl import scorers as scorers_module

    def whole(tokenizer, ids, *, thinking):
        return replace(
            parse(tokenizer, ids, thinking=thinking), well_formed=True, answer=tokenizer.decode(ids)
        )

    monkeypatch.setattr(rollout_module, "parse", whole)
    monkeypatch.setattr(
        scorers_module, "read_ids", lambda tokenizer, prompt, ids, name: (*prompt, *ids)
    )


def test_scores_begin_with_their_step_and_stand_in_parts_and_metrics(
    model, tokenizer, counting, answering, tmp_path
):
    early, late = collected(
        model,
        tokenizer,
        counting,
        [1, 2],
        model_rewards_last_steps=2,
        by_task={"countdown": RewardWeights()},
    )
    assert all(r.scores == {} and "preference" not in r.parts for g in early.groups for r in g)
    assert counting.seen and all(len(batch) == 3 for batch in counting.seen)
    assert len(counting.seen) == 2  # the two groups of chain_sum, and not those of countdown
    scored = [r for g in late.groups for r in g if r.problem.task == "chain_sum"]
    others = [r for g in late.groups for r in g if r.problem.task != "chain_sum"]
    assert all(r.parts["preference"] == 0.5 * r.scores["preference"] for r in scored)
    assert all("preference" not in r.parts and not r.scores for r in others)
    tasks = [Even(), ChainSum()]
    report = progress(3, tasks, late, [])
    mean = sum(r.scores["preference"] for r in scored) / len(scored)
    assert report.preference_score == pytest.approx(mean) and report.safety_score is None
    assert progress(2, tasks, early, []).preference_score is None
    save_rollouts(tmp_path, 3, late)
    rows = [
        RolloutRow.model_validate_json(line)
        for line in (tmp_path / "step-000003.jsonl").read_text().splitlines()
    ]
    back = [row.rollout(tokenizer) for row in rows]
    assert [r.scores for r in back] == [r.scores for g in late.groups for r in g]
    assert [r.reward for r in back] == [r.reward for g in late.groups for r in g]


def test_a_reward_does_not_depend_on_other_groups(model, tokenizer, counting, answering):
    (whole,) = collected(model, tokenizer, counting, [2])
    again = Counting(tokenizer)
    (other,) = collected(model, tokenizer, again, [2], by_task={"countdown": RewardWeights()})
    pick = [
        [[r.reward for r in g] for g in step.groups if g[0].problem.task == "chain_sum"]
        for step in (whole, other)
    ]
    assert pick[0] == pick[1] and len(pick[0]) == 2


def test_a_collector_without_the_models_is_a_fault(model, tokenizer):
    with pytest.raises(ValueError, match="models that score"):
        Collector(
            Engine(model, EngineConfig(max_model_len=64)),
            tokenizer,
            [ChainSum()],
            RLConfig(steps=1, reward=scoring()),
            lambda step, again: [],
            seed=0,
        )


def test_old_rollouts_without_scores_are_read(make_rollout, tokenizer, tmp_path):
    save_rollouts(tmp_path, 1, Collected(0, [[make_rollout([1], [2])]]))
    path = tmp_path / "step-000001.jsonl"
    path.write_text(path.read_text().replace(', "scores": {}', ""))
    assert "scores" not in path.read_text()
    row = RolloutRow.model_validate_json(path.read_text())
    assert row.rollout(tokenizer).scores == {}


def test_rewarded_without_scores_is_as_before(tokenizer, make_group):
    group = make_group(response_of(tokenizer, "2"))
    config = RLConfig(steps=1, group_size=2)
    verdicts = [one for one in group.judged if one]
    (one,) = rewarded(group.problem, group.prompt_ids, group.responses, verdicts, config)
    assert one.parts == {"well_formed": 0.1, "correct": 1.0} and one.scores == {}
