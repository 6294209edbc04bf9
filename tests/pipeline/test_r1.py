"""A pipeline of real training, at its smallest: from random weights to a student, stopped and killed, to the bit."""

import importlib.util
import shutil
import signal
from pathlib import Path

import pytest

from nalar.evals.r1_report import R1Report, build_r1
from nalar.evals.r1_results import win_rate
from nalar.pipeline import r1 as r1_module
from nalar.pipeline import r1_measure
from nalar.pipeline.r1 import run_r1
from nalar.pipeline.r1_config import R1Config
from nalar.pipeline.state import Outcome, State
from nalar.run import Run

SCRIPT = Path(__file__).parent / "killable_r1.py"
TASK = "chain_sum"
STAGES = ("pretrain", "zero")


def shrunk_pipeline(shrunk) -> R1Config:
    """Every stage, each as short as can be."""
    zero = shrunk.model_dump(mode="json")
    zero |= {"threads": 2, "device": "auto", "probe": None}
    zero["pretrain"] |= {"slice_tokens": 10 * 384, "max_slices": 1, "log_every_steps": 1}
    zero["pretrain"] |= {"save_every_steps": 4}
    evals = {"tasks": (TASK,), "problems": 3, "k": 2, "max_tokens": 24}
    rl = {
        "steps": 2,
        "tasks": (TASK,),
        "prompts_per_step": 4,
        "group_size": 4,
        "max_tokens": 24,
        "save_every_steps": 1,
    }

    def rl_from(model):
        return {"model": model, "rl": rl, "evals": evals}

    def sft_from(model, data):
        packing = {"step_tokens": 256, "document_tokens": 64}
        source = {"kind": "files", "path": data}
        return {"model": model, "data": source, "packing": packing, "log_every_steps": 1}

    student = zero | {"tokenizer": zero["tokenizer"] | {"path": "@base"}}
    return R1Config.model_validate(
        {
            "recipe": "r1-shrunk",
            "threads": 1,
            "device": "cpu",
            "pretrain": zero,
            "zero": rl_from("@base"),
            "cold_start_data": {"model": "@zero", "tasks": (TASK,)},
            "cold_start": sft_from("@base", "@cold_start_data"),
            "rl1": rl_from("@cold_start"),
            "rejection_sampling": {"model": "@rl1", "tasks": (TASK,)},
            "sft": sft_from("@base", "@rejection_sampling"),
            "preference_model": {"kind": "preference", "model": "@sft"},
            "rl2": rl_from("@sft"),
            "student": student,
            "distil": sft_from("@student", "@rejection_sampling"),
            "measure": {"evals": evals},
        }
    )


@pytest.fixture(scope="module")
def config(shrunk, tmp_path_factory) -> R1Config:
    found = shrunk_pipeline(shrunk).model_dump(mode="json")
    cache = str(tmp_path_factory.mktemp("cache"))
    for name in ("cold_start", "sft", "distil"):
        found[name]["cache_dir"] = cache
    return R1Config.model_validate(found)


@pytest.fixture(scope="module")
def parts():
    """The script, as a module: it has the stand-ins."""
    spec = importlib.util.spec_from_file_location("killable_r1", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def begin(config, parts):
    """Begins a pipeline, or goes on with it, in this process."""

    def begin(path, observer, should_stop=lambda: False):
        if (path / "run.json").exists():
            run = Run.open(path)
        else:
            settings = config.model_dump(mode="json")
            run = Run.create(path.parent, path.name, settings, "killable", config.seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(r1_module, "run_as_its_kind", parts.as_its_kind)
            return run, run_r1(config, run, observer, should_stop)

    return begin


@pytest.fixture(scope="module")
def whole(begin, make_recorder, tmp_path_factory) -> Run:
    run, outcome = begin(tmp_path_factory.mktemp("whole") / "r", make_recorder())
    assert outcome is Outcome.FINISHED
    return run


CLOCK = {"wall_s", "usd", "energy_wh", "tokens_per_s", "mfu_frac"}


def weights(run: Run) -> dict[str, bytes]:
    """Of the model that each stage ended with, and all that was sampled from them."""
    files = [*run.path.glob("stages/*/model/*.safetensors"), *run.path.glob("samples/*")]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in files}


def logged(run: Run) -> list[object]:
    """What was logged, without the clock."""
    runs = [run, *(Run.open(path.parent) for path in sorted(run.path.glob("stages/*/run.json")))]
    return [
        (one.path.name, m.stage, m.step, {k: v for k, v in m.values.items() if k not in CLOCK})
        for one in runs
        for stage in ("pretrain", "rl", "sft", "held_out_after", "measure_zero")
        for m in one.metrics(stage)
    ]


def test_every_model_is_made_and_measured_on_the_same_problems(whole):
    report = build_r1(whole)
    assert list(report.models) == [
        *("base", "zero", "dev1", "dev2", "dev3", "final", "student", "distilled")
    ]
    assert {result.tasks[TASK].n for result in report.models.values()} == {3}
    assert report.is_complete
    for one in report.samples:
        assert list(one.responses) == list(report.models)
    assert R1Report.model_validate_json((whole.path / "r1.json").read_bytes()) == report


def test_each_stage_is_a_run_with_its_own_receipt(whole):
    report = build_r1(whole)
    by_name = {receipt.name: receipt for receipt in report.stages}
    for name in ("pretrain", "zero", "cold_start", "rl1", "sft", "rl2", "student", "distil"):
        assert by_name[name].tokens > 0 and by_name[name].flops > 0 and by_name[name].is_done
        own = Run.open(whole.path / "stages" / name)
        assert by_name[name].tokens == sum(receipt.tokens for receipt in own.ledger())
    assert report.total.tokens == sum(receipt.tokens for receipt in report.stages)
    on_top = [r.tokens for r in report.stages if r.row in ("zero", "data", "r1")]
    assert report.on_top_of_base.tokens == sum(on_top) < report.total.tokens


def test_stages_begin_with_the_models_that_they_name(whole):
    configs = {
        path.parent.name: Run.open(path.parent).info.config
        for path in whole.path.glob("stages/*/run.json")
    }

    def model(stage):
        return str((whole.path / "stages" / stage / "model").resolve())

    assert configs["zero"]["model"] == configs["sft"]["model"] == model("pretrain")
    assert configs["rl1"]["model"] == model("cold_start")
    assert configs["distil"]["model"] == model("student")
    base, student = (
        (whole.path / "stages" / name / "model" / "tokenizer.json").read_bytes()
        for name in ("pretrain", "student")
    )
    assert base == student


@pytest.mark.slow
def test_a_stop_at_any_step_goes_on_to_the_bit(whole, begin, make_recorder, tmp_path):
    path, outcome, sessions = tmp_path / "r", None, 0
    while outcome is not Outcome.FINISHED:
        watching = make_recorder()
        sessions += 1
        # Further each time: 15 steps, whatever stage they are of.
        run, outcome = begin(path, watching, lambda seen=watching: len(seen.steps) >= 15)
        assert sessions < 30
    assert sessions > 2
    assert weights(run) == weights(whole)
    assert logged(run) == logged(whole)


def test_a_finished_pipeline_does_no_work(whole, begin, make_recorder):
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*") if path.is_file()}
    watching = make_recorder()
    assert begin(whole.path, watching)[1] is Outcome.FINISHED
    assert (watching.started, watching.steps, watching.finished) == ([], [], [])
    after = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"r1.json", "report.html"}


def test_answers_that_are_rated_are_held_against_those_of_the_base(
    whole, begin, make_recorder, tmp_path, monkeypatch
):
    copy = tmp_path / "r"
    shutil.copytree(whole.path, copy, symlinks=True)
    State().write(Run.open(copy))  # nothing is measured, every stage is done
    monkeypatch.setattr(r1_measure, "rate_of", lambda task: lambda problem, answer: len(answer))
    watching = make_recorder()
    run, outcome = begin(copy, watching)
    assert outcome is Outcome.FINISHED
    assert all(stage.startswith("measure_") for stage, *_ in watching.started)
    models = build_r1(run).models
    assert models["base"].win_rate == {}
    rows = {name: r1_measure.ratings(run.samples(f"measure_{name}"), TASK) for name in STAGES}
    assert {len(rated) for name in rows for rated in rows[name].values()} == {2}
    expected = win_rate(rows["zero"], rows["pretrain"], seed=7)
    assert models["zero"].win_rate == {TASK: expected}
    assert models["zero"].quality[TASK].mean == pytest.approx(
        sum(sum(rated) for rated in rows["zero"].values()) / 6
    )


def test_who_was_taught_to_is_asked_with_less_thought_too(config):
    given = config.model_dump(mode="json")
    given["rejection_sampling"]["no_thinking_frac"] = 0.3
    taught = R1Config.model_validate(given)
    assert list(r1_measure.modes(taught, "zero")) == ["on"]
    asked = r1_measure.modes(taught, "rl2")
    assert list(asked) == ["on", "budget", "off"]
    assert asked["budget"].thinking_budget == 64 and asked["off"].thinking == "off"
    given["measure"]["thinking_budget"] = None
    assert list(r1_measure.modes(R1Config.model_validate(given), "distil")) == ["on", "off"]
    assert list(r1_measure.modes(taught, "pretrain")) == ["on"]


@pytest.mark.slow
@pytest.mark.parametrize("words", ["step rl1/rl 1", "start measure_cold_start 0"])
def test_a_kill_costs_only_time(words, whole, config, make_forks, tmp_path):
    document = tmp_path / "config.json"
    document.write_text(config.model_dump_json())
    forks = make_forks(SCRIPT)
    forks.start(document, tmp_path / "runs" / "r", cwd=tmp_path)
    for line in forks.lines():
        if line.strip() == words:
            forks.kill()
    assert forks.code == -signal.SIGKILL
    forks.start(document, tmp_path / "runs" / "r", cwd=tmp_path)
    assert "ended finished" in "".join(forks.lines()) and forks.code == 0
    run = Run.open(tmp_path / "runs" / "r")
    assert weights(run) == weights(whole)
    assert logged(run) == logged(whole)
