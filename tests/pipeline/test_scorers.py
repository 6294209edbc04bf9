"""RL with a model that scores: kept on record, counted, gone on with to the bit, refused where it does not fit."""

import json
import shutil
from pathlib import Path

import pytest

from nalar.config import UserError
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.model.weights import load_model, save_model
from nalar.pipeline.config import RlRunConfig
from nalar.pipeline.models import MODELS_FILE
from nalar.pipeline.rl import plan_rl, run_rl
from nalar.pipeline.scorers import model_of
from nalar.pipeline.state import Outcome
from nalar.rl.reward_model import with_score_head
from nalar.run import ROLLOUTS, Run

CLOCK = {"wall_s", "usd", "energy_wh", "tokens_per_s", "mfu_frac"}


@pytest.fixture(scope="module")
def base(finished) -> Path:
    """The base of the shrunk recipe, before RL: it answers chains of sums with some number."""
    return max((finished[0].path / "checkpoints").glob("pretrain-*"))


@pytest.fixture(scope="module")
def scorer(base, tmp_path_factory) -> Path:
    """A model that scores, as a folder; it has learned nothing, and its scores differ."""
    folder = tmp_path_factory.mktemp("scorer") / "model"
    shutil.copytree(base, folder)
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    model = with_score_head(load_model(base, with_mtp=False), seed=5)
    model.score.weight.data.mul_(30)
    save_model(model, folder, token_ids={"eos_token_id": 0, "pad_token_id": 0})
    return folder


@pytest.fixture(scope="module")
def make_config(base, scorer):
    def make(reward=None, **rl) -> RlRunConfig:
        settings = {
            "steps": 4,
            "tasks": ("chain_sum",),
            "prompts_per_step": 4,
            "group_size": 4,
            "max_tokens": 24,
            "save_every_steps": 2,
            "lr": 3e-3,
            "reward": {
                "safety": 0.5,
                "safety_model": str(scorer),
                "model_rewards_last_steps": 3,
            }
            | (reward or {}),
            "rollout": {"save_every_steps": 1},
            "alarms": {"held_out_every_steps": None},
        }
        return RlRunConfig.model_validate(
            {
                "threads": 1,
                "device": "cpu",
                "model": str(base),
                "rl": settings | rl,
                "evals": {"tasks": ("chain_sum",), "problems": 2, "k": 2, "max_tokens": 24},
            }
        )

    return make


@pytest.fixture(scope="module")
def go(make_recorder):
    def go(run, *, should_stop=lambda: False, observer=None) -> Outcome:
        run = Run.open(run.path)
        config = RlRunConfig.model_validate(run.info.config)
        return run_rl(config, run, observer or make_recorder(), should_stop)

    return go


@pytest.fixture(scope="module")
def whole(make_work, make_config, go, tmp_path_factory):
    run = make_work(tmp_path_factory.mktemp("whole")).create("run", make_config())
    assert go(run) is Outcome.FINISHED
    return run


def timeless(run):
    return [{k: v for k, v in m.values.items() if k not in CLOCK} for m in run.metrics("rl")]


def weights(run) -> bytes:
    return (run.path / "model" / "model.safetensors").read_bytes()


def rows(run, step):
    path = run.path / ROLLOUTS / f"step-{step:06d}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_stand_in_metrics_and_samples_from_their_step_on(whole):
    metrics = [m.values for m in whole.metrics("rl")]
    assert "safety_score" not in metrics[0]
    for step, values in enumerate(metrics[1:], start=2):
        scored = [row for row in rows(whole, step) if row["scores"]]
        assert scored, "nothing whole was drawn: the test is too small"
        mean = sum(row["scores"]["safety"] for row in scored) / len(scored)
        assert values["safety_score"] == pytest.approx(mean)
        for row in scored:
            assert 0 < row["scores"]["safety"] < 1
            assert row["parts"]["safety"] == pytest.approx(0.5 * row["scores"]["safety"])
            assert row["reward"] == pytest.approx(sum(row["parts"].values()))
    assert not any(row["scores"] or "safety" in row["parts"] for row in rows(whole, 1))
    assert len({row["scores"]["safety"] for row in rows(whole, 4) if row["scores"]}) > 1


def test_the_run_says_which_models_its_rewards_come_from(whole):
    record = whole.read_json(MODELS_FILE)["models"]
    [(folder, digest)] = record.items()
    assert Path(folder) == model_of("safety", whole.info.config["rl"]["reward"]["safety_model"])
    assert len(digest) == 64


@pytest.mark.slow
def test_what_scoring_took_is_in_the_bill(whole, make_config, work, go):
    late = work.create("late", make_config({"model_rewards_last_steps": 1}))
    seen = [run.stage_total("rl") for run in (whole, late) if run is whole or go(run)]
    first = [run.metrics("rl")[0].values["reward"] for run in (whole, late)]
    assert first[0] == first[1]  # models had no say yet
    assert seen[0].flops != seen[1].flops


@pytest.mark.few(1)
@pytest.mark.parametrize("at", [3, 1])
def test_a_run_that_was_interrupted_ends_the_same_to_the_bit(
    at, make_config, whole, work, go, recorder
):
    run, seen = work.create("cut", make_config()), recorder.step

    def interrupt(stage, step, values):
        seen(stage, step, values)
        if (stage, step) == ("rl", at):
            raise KeyboardInterrupt

    recorder.step = interrupt
    with pytest.raises(KeyboardInterrupt):
        go(run, observer=recorder)
    assert go(run) is Outcome.FINISHED
    assert weights(run) == weights(whole) and timeless(run) == timeless(whole)
    assert rows(run, 4) == rows(whole, 4)


def test_saved_rewards_are_trained_on_without_the_model(make_config, whole, work, go):
    """The folder may be gone by then."""
    config = make_config({"safety_model": "/nowhere"})
    rollout = {
        "debug": "train_only",
        "replay_dir": str(whole.path / ROLLOUTS),
        "save_every_steps": 1,
    }
    config = make_config({"safety_model": "/nowhere"}, rollout=rollout)
    plan_rl(config)
    run = work.create("replay", config)
    assert go(run) is Outcome.FINISHED
    assert weights(run) == weights(whole)
    assert run.metrics("rl")[-1].values["safety_score"] == timeless(whole)[-1]["safety_score"]


def test_another_model_in_its_place_is_refused(make_config, scorer, work, go, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(scorer, folder)
    run = work.create("run", make_config({"safety_model": str(folder)}))
    asked = iter([False] * 4 + [True] * 20)
    assert go(run, should_stop=lambda: next(asked)) is Outcome.STOPPED
    before = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(UserError, match="another model than the run began with"):
        go(run)
    (folder / "model.safetensors").write_bytes(before)
    assert go(run) is Outcome.FINISHED


def test_a_run_of_nalar_reward_is_found_by_its_folder(scorer, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="no model"):
        model_of("safety", str(tmp_path))
    (tmp_path / "model").symlink_to(scorer)
    assert model_of("safety", str(tmp_path)) == tmp_path / "model"
    assert model_of("safety", str(scorer)) == scorer


def test_models_that_do_not_fit_are_refused_before_a_run_begins(
    make_config, base, scorer, tmp_path
):
    plain = make_config({"safety": 0.0, "safety_model": None, "model_rewards_last_steps": None})
    with_it, without = plan_rl(make_config()), plan_rl(plain)
    assert with_it.flops > without.flops and with_it.memory_bytes > without.memory_bytes
    with pytest.raises(UserError, match=r"safety_model: got /nowhere"):
        plan_rl(make_config({"safety_model": "/nowhere"}))
    with pytest.raises(
        UserError, match=r"a model that predicts tokens(.|\n)*nalar reward --kind safety"
    ):
        plan_rl(make_config({"safety_model": str(base)}))
    other = tmp_path / "other"
    shutil.copytree(scorer, other)
    Tokenizer.train(["abc abd"] * 4, TokenizerConfig(vocab_size=262)).save(other)
    with pytest.raises(UserError, match="another tokenizer"):
        plan_rl(make_config({"safety_model": str(other)}))
    short = tmp_path / "short"
    shutil.copytree(scorer, short)
    document = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(document | {"max_position_embeddings": 50}))
    with pytest.raises(UserError, match="max_position_embeddings=50"):
        plan_rl(make_config({"safety_model": str(short)}))
