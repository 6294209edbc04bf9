"""Collecting from a model: fine-tuning reads what it writes, it goes on to the bit, and refuses what cannot work."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from nalar.config import ConfigError, UserError
from nalar.data.config import FileSource, TokenizerConfig
from nalar.data.dialogue import encode_dialogue, encode_prompt
from nalar.data.tokenizer import Tokenizer
from nalar.endpoint import EndpointConfig
from nalar.engine.sequence import Request, SamplingParams
from nalar.kernels.documents import Documents
from nalar.kernels.logprobs import token_logprobs
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model
from nalar.pipeline import collect as collect_module
from nalar.pipeline.collect import plan_collect, run_collect, weights_digest
from nalar.pipeline.collect_config import CollectConfig, RewriterConfig
from nalar.pipeline.config import SftConfig
from nalar.pipeline.sampler import load_sampler
from nalar.pipeline.sft import plan_sft
from nalar.pipeline.state import Outcome
from nalar.run import Run
from nalar.tasks.problem import split_of

LETTERS = """
def make(rng):
    return {"prompt": f"say {rng.randrange(5000)}", "answer": "b"}

def score(problem, answer):
    return len(answer.strip()) == 1 and ord(answer.strip()) % 2 == 0
"""
"""Half of all single signs are right, so that a model which knows nothing often is."""


@pytest.fixture(scope="module", autouse=True)
def few_problems_are_held_out():
    """Of 256 each is looked for among those to learn from before every run: more than these runs sample."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_module, "_COMPARED", 16)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory, shrunk) -> Path:
    """Has the form: thinks a few signs, and answers with any one."""
    tokenizer = Tokenizer.train(["say 12 ab"] * 4, TokenizerConfig(vocab_size=262))
    shape = {"vocab_size": tokenizer.vocab_size, "initializer_range": 0.05}
    model, rng = Transformer(shrunk.model.model_copy(update=shape)), random.Random(0)
    model.initialize(seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        ids, is_own, lengths = list[int](), list[bool](), list[int]()
        for _ in range(12):
            thought = "".join(rng.choices("abcd 12", k=rng.randrange(2, 9)))
            said = {"role": "assistant", "reasoning_content": thought, "content": rng.choice("ab")}
            asked = {"role": "user", "content": f"say {rng.randrange(5000)}"}
            one, own = encode_dialogue(tokenizer, [asked, said])
            ids, is_own, lengths = ids + one, is_own + own, [*lengths, len(one)]
        where = torch.tensor([i for i, own in enumerate(is_own) if own])
        states = model(torch.tensor(ids), Documents.of(lengths)).states[where - 1]
        logprobs, _ = token_logprobs(states, model.head_weight, torch.tensor(ids)[where])
        optimizer.zero_grad()
        (-logprobs.mean()).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("base")
    save_model(model, path, token_ids={"eos_token_id": tokenizer.end_id})
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("task") / "letters.py"
    path.write_text(LETTERS)
    return str(path)


@pytest.fixture(scope="module")
def make_config(base, task):
    def make(**changes) -> CollectConfig:
        settings = {
            "threads": 1,
            "device": "cpu",
            "seed": 3,
            "model": str(base),
            "tasks": (task,),
            "problems_per_task": 14,
            "samples": 8,
            "max_tokens": 20,
            "keep_per_problem": 2,
            "no_thinking_frac": 0.3,
            "cut_thought_frac": 0.3,
            "chunk_problems": 4,
        }
        return CollectConfig.model_validate(settings | changes)

    return make


@pytest.fixture(scope="module")
def go(make_recorder):
    def go(run, *, should_stop=lambda: False, observer=None) -> Outcome:
        run = Run.open(run.path)
        config = CollectConfig.model_validate(run.info.config)
        return run_collect(config, run, observer or make_recorder(), should_stop)

    return go


@pytest.fixture(scope="module")
def whole(make_work, make_config, go, make_recorder, tmp_path_factory):
    run = make_work(tmp_path_factory.mktemp("whole")).create("cold", make_config())
    recorder = make_recorder()
    assert go(run, observer=recorder) is Outcome.FINISHED
    return run, recorder


def rows(run):
    return [json.loads(line) for line in (run.path / "dataset.jsonl").read_text().splitlines()]


def written(run):
    return [(run.path / name).read_bytes() for name in ("dataset.jsonl", "collect.json")]


def test_the_counts_add_up_and_the_data_says_where_it_comes_from(whole, base, task):
    run, recorder = whole
    record, lines = run.read_json("collect.json"), rows(run)
    sampled = record["sampled"]
    assert (sampled["problems"], sampled["samples"]) == (14, 14 * 8)
    assert sampled["samples"] == sampled["kept"] + sum(sampled["dropped"].values())
    assert {"not_whole", "wrong"} <= sampled["dropped"].keys() and sampled["kept"] >= 4
    assert record["by_task"] == {"letters": sampled}
    kept = [line for line in lines if line["form"] == "whole"]
    assert len(kept) == sampled["kept"] == record["forms"]["whole"]
    share = round(0.3 * len(kept))
    assert record["forms"] == {"whole": len(kept), "no_thinking": share, "cut_thought": share}
    assert record["origins"] == {"self": len(lines)} and record["lines"] == len(lines)
    assert record["sentence"].endswith("No output of another model was trained on.")
    assert record["model"] == weights_digest(base) == kept[0]["model"]
    assert {(line["stage"], line["task"]) for line in lines} == {("cold", "letters")}
    assert recorder.notes[-1] == record["sentence"] and "kept" in recorder.notes[0]
    assert recorder.steps == [("collect", n) for n in (1, 2, 3, 4)]
    assert recorder.started == [("collect", 4, 0)]


def test_only_train_problems_are_asked_and_none_is_kept_too_often(whole):
    lines = [line for line in rows(whole[0]) if line["form"] == "whole"]
    keys = [line["key"] for line in lines]
    assert {split_of(key) for key in keys} == {"train"}
    assert max(map(keys.count, keys)) <= 2
    assert len({json.dumps(line["messages"]) for line in lines}) == len(lines)


def test_a_line_says_how_to_draw_it_again(whole, base):
    line = next(line for line in rows(whole[0]) if line["form"] == "whole")
    sampler = load_sampler(base)
    ids = encode_prompt(sampler.tokenizer, line["messages"][:1])
    params = SamplingParams(
        n=8, max_tokens=20, seed=line["seed"], stop_token_ids=sampler.tokenizer.stop_ids
    )
    with torch.inference_mode():
        drawn = sampler.engine.generate([Request(tuple(ids), params)])[0][line["sample"]]
    said = line["messages"][1]
    text = f"{said['reasoning_content']}</think>{said['content']}<|end|>"
    assert sampler.tokenizer.decode(drawn.token_ids) == text
    assert line["prompt_tokens"] == len(ids) and line["tokens"] == len(drawn.token_ids)


def test_the_receipt_is_of_all_that_was_sampled(whole):
    (total,) = whole[0].stage_totals()
    assert total.name == "collect" and total.flops > 0 and total.wall_s > 0
    assert total.tokens == whole[0].read_json("collect.json")["sampled"]["tokens"]


def test_fine_tuning_reads_it_as_it_is(whole, base):
    data = FileSource(path=str(whole[0].path / "dataset.jsonl"))
    config = SftConfig(model=str(base), data=data, packing={"document_tokens": 64})
    assert plan_sft(config).tokens > 0


@pytest.mark.few(1)
@pytest.mark.parametrize("at", [2, 1, 4])
def test_what_was_killed_goes_on_and_ends_the_same_to_the_bit(
    at, make_config, whole, work, go, recorder, make_recorder
):
    """Killed behind a chunk's line of metrics, before the chunk is kept: that one chunk is done again."""
    run, seen = work.create("cold", make_config()), recorder.step

    def interrupt(stage, step, values):
        seen(stage, step, values)
        if step == at:
            raise KeyboardInterrupt

    recorder.step = interrupt
    with pytest.raises(KeyboardInterrupt):
        go(run, observer=recorder)
    assert not (run.path / "dataset.jsonl").exists()
    again = make_recorder()
    assert go(run, observer=again) is Outcome.FINISHED
    assert again.started == [("collect", 4, at - 1)]
    assert written(run) == written(whole[0])
    (total,), (straight,) = run.stage_totals(), whole[0].stage_totals()
    assert (total.tokens, total.flops) == (straight.tokens, straight.flops)
    assert [m.step for m in run.metrics("collect")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_stop_is_heard_between_chunks(make_config, whole, work, go):
    run, asked = work.create("cold", make_config()), iter([False, False, True])
    assert go(run, should_stop=lambda: next(asked)) is Outcome.STOPPED
    assert len(list((run.path / "collected").glob("*.json"))) == 2
    assert go(run) is Outcome.FINISHED
    assert written(run) == written(whole[0])


def test_a_run_that_is_done_does_nothing_more(whole, go, make_recorder, monkeypatch):
    monkeypatch.setattr(collect_module, "load_model", None)
    before, recorder = written(whole[0]), make_recorder()
    assert go(whole[0], observer=recorder) is Outcome.FINISHED
    assert (recorder.started, written(whole[0])) == ([], before)


def test_it_goes_on_with_the_model_that_it_began_with_or_not_at_all(
    make_config, base, work, go, tmp_path
):
    moved = shutil.copytree(base, tmp_path / "model")
    run = work.create("cold", make_config(model=str(moved)))
    asked = iter([False, True])
    assert go(run, should_stop=lambda: next(asked)) is Outcome.STOPPED
    weights = next(moved.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="other weights than the run began with"):
        go(run)


def test_filters_that_leave_nothing_name_the_stage_the_reasons_and_a_remedy(make_config, work, go):
    run = work.create("cold_start_data", make_config(filters={"min_tokens": 1000}))
    for _ in range(2):  # what was sampled is not sampled again
        with pytest.raises(UserError) as caught:
            go(run)
    error = caught.value
    assert error.at == "stage cold_start_data: filters"
    assert error.got.startswith("none of 112 samples left: too short ") and "wrong " in error.got
    assert error.hint == "in a new run: a smaller filters.min_tokens"
    assert len(list((run.path / "collected").glob("*.json"))) == 4


def test_a_judge_that_goes_down_on_the_way_costs_a_chunk(make_config, work, go, chat_server):
    server = chat_server(lambda body, nth: "it is a or b" if nth <= 8 else (503, {}, b""))
    endpoint = EndpointConfig(base_url=server.url, model="scribe", max_retries=0, max_concurrency=1)
    changes = {"rewrite": "judge", "rewriter": RewriterConfig(endpoint=endpoint)}
    run = work.create("cold", make_config(**changes, chunk_problems=1, problems_per_task=8))
    with pytest.raises(UserError, match="stage cold: rewriting by scribe"):
        go(run)
    kept = [json.loads(path.read_text()) for path in (run.path / "collected").glob("*.json")]
    assert kept and all(chunk["logs"] for chunk in kept)
    server.plan = lambda body, nth: "it is a or b"
    assert go(run) is Outcome.FINISHED
    record = run.read_json("collect.json")
    assert set(record["origins"]) == {"judge:scribe"}
    assert record["sentence"].endswith("So another model's output was trained on.")
    assert record["sampled"]["judge_tokens"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_tokens": 126}, "a prompt of .* tokens"),
        ({"files": ("none.jsonl",)}, "none.jsonl"),
        ({"general": ("countdown",)}, "does not rate answers"),
        ({"model": "/nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sampled(
    changes, words, make_config, work, go
):
    config = make_config(**changes)
    with pytest.raises(UserError, match=words):
        plan_collect(config)
    with pytest.raises(UserError, match=words):
        go(work.create("cold", config))


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({"tasks": ()}, "tasks: got no task"),
        ({"tasks": ("countdwon",)}, "tasks: got 'countdwon'"),
        ({"tasks": ("countdown", "countdown")}, "want|each task once"),
        ({"rewrite": "judge"}, "rewriter: got none"),
        ({"rewrite": "rule"}, "filters.language: got None"),
        ({"filters": {"min_tokens": 9, "max_tokens": 8}}, "filters.min_tokens: got 9"),
    ],
)
def test_settings_that_disagree_are_named(changes, at, make_config):
    with pytest.raises(ConfigError, match=at):
        make_config(**changes)


def test_a_problem_that_is_held_out_too_is_refused(make_config, work, go, monkeypatch):
    real = collect_module.open_task

    def leaking(word, *, at):
        task = real(word, at=at)
        own = task.problems
        task.problems = lambda split, n, seed: own("train", n, 3)
        return task

    monkeypatch.setattr(collect_module, "open_task", leaking)
    with pytest.raises(UserError, match=r"the valid problem .* among those to learn from"):
        go(work.create("cold", make_config()))


def test_it_takes_what_the_plan_says_at_the_most(make_config, whole):
    plan = plan_collect(make_config())
    assert [stage.name for stage in plan.stages] == ["collect"]
    assert plan.memory_bytes < 10**9 and plan.disk_bytes > 0
