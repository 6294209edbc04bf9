"""A teacher beside RL: known by its digest, in the bill, resumed to the bit; refused where ids mean other things."""

import json
import shutil

import pytest
import torch

from nalar.config import ConfigError, UserError
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.evals.comparison import headline
from nalar.evals.report import build_report
from nalar.model.weights import read_config
from nalar.pipeline.config import RlRunConfig, ZeroConfig
from nalar.pipeline.rl import plan_rl
from nalar.pipeline.state import Outcome
from nalar.pipeline.teacher import load_teacher
from nalar.plan.model import count_parameters, flops_per_token, sequence_flops


@pytest.fixture(scope="module")
def teacher(make_base):
    """Of another family and shape than the student."""
    return make_base("grouped", seed=7)


@pytest.fixture(scope="module")
def task(even_task, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("task") / "even.py"
    path.write_text(even_task)
    return str(path)


@pytest.fixture(scope="module")
def student(make_base):
    return make_base("latent")


@pytest.fixture(scope="module")
def make_config(student, teacher, task):
    def make(*, taught_by=teacher, rl=None, **changes) -> RlRunConfig:
        settings = {
            "threads": 1,
            "device": "cpu",
            "model": str(student),
            "rl": {
                "steps": 4,
                "tasks": (task,),
                "prompts_per_step": 4,
                "group_size": 4,
                "max_tokens": 12,
                "save_every_steps": 2,
                "lr": 5e-3,
                "distil": {"teacher": None if taught_by is None else str(taught_by)},
                "reward": {"correct": 0.0, "well_formed": 0.0},
                "rollout": {"save_every_steps": 1},
            }
            | (rl or {}),
            "evals": {"tasks": (task,), "problems": 4, "k": 2, "max_tokens": 12},
        }
        return RlRunConfig.model_validate(settings | changes)

    return make


@pytest.fixture
def go(tmp_path, make_go):
    return make_go(tmp_path / "runs")


@pytest.fixture(scope="module")
def whole(make_config, make_go, tmp_path_factory):
    go = make_go(tmp_path_factory.mktemp("whole"))
    run = go.create("run", make_config())
    assert go.on(run) is Outcome.FINISHED
    return run


def test_a_run_without_any_reward_learns_from_its_teacher_and_no_alarm_is_set_off(
    make_config, go, recorder
):
    run = go.create("run", make_config(rl={"steps": 9, "save_every_steps": 9}))
    assert go.on(run, observer=recorder) is Outcome.FINISHED
    values = [line.values for line in run.metrics("rl")]
    assert all(v["reward"] == 0 and v["silent_groups"] == 4 for v in values)
    assert all(v["grad_norm"] > 0 and v["teacher_kl"] > 0 for v in values)
    assert all(v["trained_tokens"] == v["counted_tokens"] > 0 for v in values)
    assert not [note for note in recorder.notes if "ALARM" in note]


def test_a_run_that_was_interrupted_ends_the_same_to_the_bit(make_config, whole, go):
    run = go.create("run", make_config())
    go.interrupted(run, ("rl", 3))
    assert go.on(run) is Outcome.FINISHED
    assert go.kept(run) == go.kept(whole) and len(go.kept(run)) > 20


def test_the_teacher_is_in_no_checkpoint_and_known_by_its_digest(whole, teacher):
    models = whole.read_json("models.json")["models"]
    assert list(models) == [str(teacher)] and len(models[str(teacher)]) == 64
    files = [path.name for path in (whole.path / "model" / "state").iterdir()]
    assert not [name for name in files if "teacher" in name or "reference" in name]


def test_the_report_says_that_a_model_taught(whole, teacher):
    assert f"{teacher.parent.name}/{teacher.name} as its teacher" in headline(build_report(whole))


def test_a_run_that_is_done_needs_its_teacher_no_more(make_config, teacher, go, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(teacher, folder)
    run = go.create("run", make_config(taught_by=folder, rl={"steps": 1}))
    assert go.on(run) is Outcome.FINISHED
    shutil.rmtree(folder)
    assert go.on(run) is Outcome.FINISHED


def test_a_teacher_that_changed_is_refused(make_config, teacher, make_base, go, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(teacher, folder)
    run = go.create("run", make_config(taught_by=folder))
    go.interrupted(run, ("rl", 3))
    other = make_base("grouped", seed=8) / "model.safetensors"
    kept = (folder / "model.safetensors").read_bytes()
    shutil.copy(other, folder)
    with pytest.raises(UserError, match="another model than the run began with"):
        go.on(run)
    (folder / "model.safetensors").write_bytes(kept)
    assert go.on(run) is Outcome.FINISHED


def test_a_teacher_of_other_ids_is_refused_by_the_first(make_config, make_base):
    texts = ["say 12 is 34 ab 5+6-7 89 zq zq zq"] * 4
    other = Tokenizer.train(texts, TokenizerConfig(vocab_size=266))
    with pytest.raises(
        UserError, match=r"another tokenizer: id \d+ means b'.*' to it\n.*wanted: b'"
    ) as told:
        plan_rl(make_config(taught_by=make_base("grouped", tokenizer=other)))
    assert "rl.distil.teacher" in str(told.value)
    smaller = Tokenizer.train(["say 12 is 34 ab 5+6-7 89"] * 4, TokenizerConfig(vocab_size=262))
    with pytest.raises(UserError, match=r"id \d+ means nothing|means b'"):
        plan_rl(make_config(taught_by=make_base("grouped", tokenizer=smaller)))


def test_what_cannot_teach_is_refused(make_config, tmp_path, shrunk):
    with pytest.raises(UserError, match=r"no config\.json"):
        plan_rl(make_config(taught_by=tmp_path))
    with pytest.raises(UserError, match="max_position_embeddings"):
        plan_rl(make_config(rl={"max_tokens": 100}, max_prompt_tokens=60))
    document = shrunk.model_dump()
    document["rl"]["distil"]["teacher"] = "somewhere"
    with pytest.raises(ConfigError, match=r"rl\.distil\.teacher"):
        ZeroConfig.model_validate(document)


def test_a_teacher_is_frozen_and_without_draft_blocks(make_config, small_tokenizer, student):
    place = type("Place", (), {"device": torch.device("cpu"), "dtype": torch.float32})()
    model = load_teacher(make_config(), small_tokenizer, place)
    assert model is not None and not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert load_teacher(make_config(taught_by=None), small_tokenizer, place) is None


def test_a_forecast_knows_the_teachers_memory_and_passes(make_config, teacher):
    plain, taught = plan_rl(make_config(taught_by=None)), plan_rl(make_config())
    shape = read_config(teacher)
    assert taught.memory_bytes - plain.memory_bytes == 4 * count_parameters(shape).total_params
    context = (24 + 0.4 * 12) / 2
    passes = taught.stages[1].tokens * flops_per_token(shape, context, backward=False)
    assert taught.stages[1].flops - plain.stages[1].flops == pytest.approx(passes)
    assert taught.disk_bytes == plain.disk_bytes


@pytest.mark.slow
def test_a_bill_counts_the_teachers_passes(make_config, teacher, go):
    """Of one step from the same weights: with a teacher, and with an entropy term, which looks at all groups too."""
    runs = []
    for taught_by, coef in ((teacher, None), (None, 1e-3)):
        rl = {"steps": 1, "objective": {"entropy_coef": coef}}
        runs.append(go.create(f"run-{coef}", make_config(taught_by=taught_by, rl=rl)))
        assert go.on(runs[-1]) is Outcome.FINISHED
    taught, plain = (run.stage_total("rl") for run in runs)
    assert taught.tokens == plain.tokens
    rows = runs[0].path.joinpath("rollouts", "step-000001.jsonl").read_text().splitlines()
    lengths = [len(row["prompt_ids"]) + len(row["token_ids"]) - 1 for row in map(json.loads, rows)]
    shape = read_config(teacher)
    passes = sum(sequence_flops(shape, length, backward=False) for length in lengths)
    assert len(lengths) == 16 and taught.flops - plain.flops == pytest.approx(passes)
