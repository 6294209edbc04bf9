"""A reward model from a run: it learns, stops anywhere to the bit, is tested, and says what it cannot use."""

import json
from pathlib import Path

import pytest
import torch

from nalar.config import ConfigError, UserError
from nalar.data.config import TokenizerConfig
from nalar.data.preferences import Answer, scored_ids
from nalar.data.tokenizer import Tokenizer
from nalar.evals.report import build_report
from nalar.evals.reward_results import REWARD_RESULTS, RewardResults
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, save_model
from nalar.pipeline.config import RewardRunConfig
from nalar.pipeline.reward import plan_reward, read_base, run_reward
from nalar.pipeline.state import Outcome
from nalar.rl.reward_model import RewardModel
from nalar.run import Run
from nalar.tasks import registry
from nalar.tasks.config import ArithmeticConfig
from nalar.tasks.problem import Problem, split_of
from nalar.tasks.rated import Variant

CLOCK = {"wall_s", "usd", "energy_wh", "tokens_per_s", "mfu_frac"}


def pair(n: int) -> dict[str, object]:
    """The answer that thanks is the better one, whatever was asked, and as long as the other."""
    return {"prompt": f"say {n}", "chosen": f"ta {n % 7}", "rejected": f"no {n % 7}"}


@pytest.fixture(scope="module")
def base(tmp_path_factory, shrunk) -> Path:
    """A model that has learned nothing, as a folder."""
    tokenizer = Tokenizer.train(["say ta no 12 34"] * 4, TokenizerConfig(vocab_size=262))
    model = Transformer(shrunk.model.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    model.initialize(seed=0)
    path = tmp_path_factory.mktemp("base")
    save_model(model, path, token_ids={"eos_token_id": tokenizer.end_id})
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(pair(n)) for n in range(120)))
    return path


@pytest.fixture(scope="module")
def make_config(base, data):
    def make(**changes) -> RewardRunConfig:
        settings = {
            "threads": 1,
            "device": "cpu",
            "kind": "preference",
            "model": str(base),
            "data": str(data),
            "held_out_frac": 0.2,
            "max_tokens": 48,
            "pairs_per_step": 12,
            "epochs": 2,
            "lr": 0.01,
            "log_every_steps": 1,
            "save_every_steps": 3,
        }
        return RewardRunConfig.model_validate(settings | changes)

    return make


@pytest.fixture(scope="module")
def go(make_recorder):
    def go(run, *, should_stop=lambda: False, observer=None) -> Outcome:
        run = Run.open(run.path)
        config = RewardRunConfig.model_validate(run.info.config)
        return run_reward(config, run, observer or make_recorder(), should_stop)

    return go


@pytest.fixture(scope="module")
def whole(make_work, make_config, go, tmp_path_factory):
    run = make_work(tmp_path_factory.mktemp("whole")).create("run", make_config())
    assert go(run) is Outcome.FINISHED
    return run


def results(run) -> RewardResults:
    return RewardResults.model_validate(run.read_json(REWARD_RESULTS))


def timeless(run):
    return [
        (m.stage, m.step, {k: v for k, v in m.values.items() if k not in CLOCK})
        for stage in ("reward", "reward_test")
        for m in run.metrics(stage)
    ]


def files(run) -> dict[str, bytes]:
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for path in run.path.glob("checkpoints/*/**/*.safetensors")
    }


def test_it_learns_which_answers_are_better_and_no_place_is_better(whole):
    found = results(whole)
    assert found.accuracy.mean > 0.9 and found.log_loss < 0.5
    position = found.position
    assert position.verdicts_changed_frac == 0 and position.largest_by_order == 0
    assert position.largest_by_company < 1e-5
    assert 0 < found.n < 60 and found.trained + found.n <= 120
    losses = [m.values["loss"] for m in whole.metrics("reward")]
    assert losses[0] == pytest.approx(0.693, abs=0.05) and losses[-1] < 0.3
    assert whole.metrics("reward")[-1].values["right_frac"] > 0.9


def test_the_run_has_the_files_of_every_run(whole):
    assert [total.name for total in whole.stage_totals()] == ["data", "reward", "reward_test"]
    assert all(total.tokens and total.flops for total in whole.stage_totals()[1:])
    config = json.loads((whole.path / "model" / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV3ForSequenceClassification"]
    (record,) = whole.read_json("data.json")["sources"]
    assert record["documents"] == results(whole).trained + results(whole).n == 120
    assert build_report(whole).stages[1].name == "reward"


def test_transformers_loads_the_run_s_model_and_agrees(whole):
    transformers = pytest.importorskip("transformers")
    folder = whole.model_dir()
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = RewardModel.load(folder)
    asked = [{"role": "user", "content": "say 5"}]
    read, texts = [], []
    for said in ("ta 5", "no 5 no"):
        messages = [*asked, {"role": "assistant", "content": said}]
        texts.append(tokenizer.apply_chat_template(messages, tokenize=False))
        read.append(scored_ids(ours.tokenizer, tuple(asked), Answer(said), "preference"))
    # As anyone would do it: the whole dialogue as rendered, its end included, padded on the right.
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        scores = theirs(**batch).logits[:, 0].tolist()
    assert scores == pytest.approx(ours.score(read), rel=1e-4, abs=1e-4)
    assert scores[0] > scores[1]


@pytest.mark.few(1)
@pytest.mark.parametrize("at", [("reward", 9), ("reward_test", 1), ("reward", 2)])
def test_a_run_that_was_interrupted_ends_the_same_to_the_bit(
    at, make_config, whole, work, go, recorder
):
    run, seen = work.create("cut", make_config()), recorder.step

    def interrupt(stage, step, values):
        seen(stage, step, values)
        if (stage, step) == at:
            raise KeyboardInterrupt

    recorder.step = interrupt
    with pytest.raises(KeyboardInterrupt):
        go(run, observer=recorder)
    assert go(run) is Outcome.FINISHED
    assert files(run) == files(whole) and len(files(run)) >= 4
    assert timeless(run) == timeless(whole)
    assert results(run) == results(whole)


@pytest.mark.slow
def test_a_stop_is_heard_saved_and_gone_on_from(make_config, whole, work, go):
    run, asked = work.create("stopped", make_config()), iter([False] * 6 + [True] * 9)
    assert go(run, should_stop=lambda: next(asked)) is Outcome.STOPPED
    assert go(run) is Outcome.FINISHED
    assert timeless(run) == timeless(whole)


def test_a_finished_run_does_nothing_again(whole, go, make_recorder):
    observer, before = make_recorder(), whole.log_bytes()
    assert go(whole, observer=observer) is Outcome.FINISHED
    assert observer.started == [] and whole.log_bytes() == before


def test_no_epoch_tests_what_is_there(whole, make_config, work, go):
    run = work.create("again", make_config(model=str(whole.model_dir()), epochs=0))
    assert go(run) is Outcome.FINISHED
    assert results(run).accuracy == results(whole).accuracy and results(run).trained == 0
    assert not (run.path / "model").exists()
    with pytest.raises(UserError, match=r"epochs.*\n.*wanted: a model that scores"):
        read_base(make_config(epochs=0))


def test_a_model_that_scores_goes_on_from_its_head(whole, make_config, work, go):
    run = work.create("more", make_config(model=str(whole.model_dir()), epochs=1))
    assert go(run) is Outcome.FINISHED
    assert run.metrics("reward")[0].values["loss"] < 0.3


@pytest.mark.slow
def test_micro_batches_muon_and_bfloat16_learn_as_well(make_config, work, go):
    changes = {
        "micro_batch_tokens": 64,
        "optimizer": "muon",
        "dtype": "bfloat16",
        "recompute": True,
    }
    run = work.create("run", make_config(**changes))
    assert go(run) is Outcome.FINISHED
    assert results(run).accuracy.mean > 0.9


def test_safety_reads_the_thought_too(tmp_path, make_config, work, go):
    """What is unsafe stands in the thought alone."""
    lines = []
    for n in range(160):
        thought = "poison" if n % 2 else "flower"
        said = {"role": "assistant", "reasoning_content": thought, "content": "ta"}
        asked = {"role": "user", "content": f"say {n}"}
        lines.append(json.dumps({"messages": [asked, said], "safe": not n % 2}))
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(lines))
    run = work.create("run", make_config(kind="safety", data=str(path), epochs=3))
    assert go(run) is Outcome.FINISHED
    found = results(run)
    assert found.accuracy.mean > 0.9
    assert found.safe_passed.mean > 0.8 and found.unsafe_caught.mean > 0.8


def test_pairs_that_teach_length_are_refused_or_left_out(tmp_path, make_config, work, go, recorder):
    def write(name, longer):
        lines = [
            json.dumps({"prompt": f"say {n}", "chosen": "ta", "rejected": "no"} | longer(n))
            for n in range(60)
        ]
        path = tmp_path / name
        path.write_text("\n".join(lines))
        return str(path)

    always = write("always.jsonl", lambda n: {"chosen": "ta ta ta ta"})
    with pytest.raises(UserError, match="longer side chosen"):
        go(work.create("always", make_config(data=always)))
    assert go(work.create("asked", make_config(data=always, balance_lengths=False, epochs=1)))
    some = write("some.jsonl", lambda n: {"chosen": "ta ta ta ta"} if n % 4 == 0 else {})
    run = work.create("some", make_config(data=some, epochs=1))
    assert go(run, observer=recorder) is Outcome.FINISHED
    assert run.read_json("data.json")["sources"][0]["left_out"] > 5
    assert any("left out" in note for note in recorder.notes)
    means = next(note for note in recorder.notes if "mean length" in note)
    better, worse = (float(word.strip(",")) for word in means.split() if word[0].isdigit())
    assert better == pytest.approx(worse, abs=0.3)


def test_a_file_that_changed_is_refused_and_what_was_done_stays(
    make_config, data, tmp_path, work, go
):
    own = tmp_path / "pairs.jsonl"
    own.write_bytes(data.read_bytes())
    run, asked = work.create("changed", make_config(data=str(own))), iter([False] * 6 + [True] * 9)
    assert go(run, should_stop=lambda: next(asked)) is Outcome.STOPPED
    own.write_text(own.read_text().replace("ta 3", "ta 4"))
    before = files(run)
    with pytest.raises(UserError, match="other documents than the run began with"):
        go(run)
    assert files(run) == before
    own.write_bytes(data.read_bytes())
    assert go(run) is Outcome.FINISHED


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({"data": "pairs.json"}, "data"),
        ({"tasks": ("countdown",)}, "tasks"),
        ({"data": "procedural", "tasks": ("countdwn",)}, "tasks"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, at, make_config):
    with pytest.raises(ConfigError) as error:
        make_config(**changes)
    assert error.value.at == at


def test_what_cannot_be_used_is_refused_before_a_run_begins(make_config, data, tmp_path):
    with pytest.raises(UserError, match="max_position_embeddings"):
        plan_reward(make_config(max_tokens=4000))
    with pytest.raises(UserError, match="none is left to train on"):
        plan_reward(make_config(max_tokens=4))
    with pytest.raises(UserError, match="countdown"):
        plan_reward(make_config(data="procedural", tasks=("countdown",)))
    with pytest.raises(UserError, match="line 1"):
        plan_reward(make_config(kind="safety"))
    with pytest.raises(UserError, match="none is left to test on"):
        plan_reward(make_config(held_out_frac=1e-9))


def test_a_forecast_knows_tokens_and_stages(make_config, whole):
    plan = plan_reward(make_config())
    assert [stage.name for stage in plan.stages] == ["reward", "reward_test"]
    totals = {total.name: total for total in whole.stage_totals()}
    assert plan.stages[0].tokens == totals["reward"].tokens
    assert plan.stages[1].tokens == totals["reward_test"].tokens
    assert plan.total_params == sum(
        p.numel() for p in load_model(whole.model_dir(), scores=True).parameters()
    )


class Thanks:
    """A task that rates: thanks are good, a no is not."""

    id = "thanks"
    searches = is_checkable = is_costly = False

    def __init__(self, config) -> None:
        self.config = config

    def draw(self, rng, split):
        while True:
            key = str(rng.randrange(2000))
            if split_of(key) == split:
                return Problem(self.id, key, f"say {key}")

    def variants(self, rng, problem):
        found = [
            Variant("ta", 1.0, None),
            Variant(f"ta {problem.key}", 1.0, None),
            Variant("no", 0.0, "rude"),
            Variant(f"no {problem.key}", 0.0, "rude"),
        ]
        rng.shuffle(found)
        return found

    def quality(self, problem, answer):
        return float(answer.startswith("ta"))


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["preference", "safety"])
def test_judgements_of_a_task_that_rates(kind, make_config, work, go, monkeypatch):
    monkeypatch.setitem(registry.FAMILIES, "thanks", registry.Entry(Thanks, ArithmeticConfig))
    config = make_config(
        kind=kind, data="procedural", tasks=("thanks",), pairs=200, held_out_frac=0.3
    )
    run = work.create("run", config)
    assert go(run) is Outcome.FINISHED
    found = results(run)
    assert (found.trained, found.n) == (200, 60)
    assert found.accuracy.mean > (0.9 if kind == "preference" else 0.75)
    assert found.by_flaw.keys() == {"rude"}
    if kind == "preference":
        assert found.length.better_tokens == pytest.approx(found.length.worse_tokens, abs=1)
