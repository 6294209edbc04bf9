"""Which stages a pipeline does, in which order, from which inputs; without training anything."""

import hashlib
from pathlib import Path

import pytest

from nalar.config import ConfigError, UserError
from nalar.evals.r1_results import ModelResult
from nalar.machine import environment
from nalar.pipeline import r1 as r1_module
from nalar.pipeline.config import RlRunConfig
from nalar.pipeline.r1 import run_r1
from nalar.pipeline.r1_config import R1Config, inputs, references, stage_config, taught_switch
from nalar.pipeline.r1_errors import of_stage
from nalar.pipeline.standing import stage_path, standing
from nalar.pipeline.state import Outcome, State
from nalar.plan.r1_stages import STAGES
from nalar.run import Run

TASK = "linear,max_coefficient=5,max_solution=9"


def settings(**changes):
    """Every stage on, wired as in R1."""
    rl = {"steps": 2, "tasks": (TASK,), "max_tokens": 24}

    def rl_from(model):
        return {"model": model, "rl": rl}

    def collect_from(model, **more):
        return {"model": model, "tasks": (TASK,)} | more

    def sft_from(model, data):
        return {"model": model, "data": {"kind": "files", "path": data}}

    return {
        "recipe": "r1-test",
        "threads": 1,
        "device": "cpu",
        "base": "base-folder",
        "zero": rl_from("@base"),
        "cold_start_data": collect_from("@zero"),
        "cold_start": sft_from("@base", "@cold_start_data"),
        "rl1": rl_from("@cold_start"),
        "rejection_sampling": collect_from("@rl1", no_thinking_frac=0.3),
        "sft": sft_from("@base", "@rejection_sampling"),
        "preference_model": {"kind": "preference", "model": "@sft"},
        "safety_model": {"kind": "safety", "model": "@sft"},
        "rl2": rl_from("@sft"),
        "student_base": "student-folder",
        "distil": sft_from("@student", "@rejection_sampling"),
        "on_policy": rl_from("@distil"),
        "measure": {"evals": {"tasks": (TASK,), "problems": 4, "k": 2, "max_tokens": 24}},
    } | changes


def config_of(**changes) -> R1Config:
    return R1Config.model_validate(settings(**changes))


ALL = tuple(settings().keys() - {"recipe"})
ORDER = (
    "zero",
    "cold_start_data",
    "cold_start",
    "rl1",
    "rejection_sampling",
    "sft",
    "preference_model",
    "safety_model",
    "rl2",
    "distil",
    "on_policy",
)


_NOTHING = {"tasks": {}, "thought_tokens": {}}


class Doer:
    """Stands in for what the stages do: remembers it, and leaves what a stage leaves."""

    def __init__(self):
        self.did, self.measured, self.configs = [], [], {}
        self.breaks: dict[str, Exception | Outcome] = {}

    def stage(self, config, run, observer, should_stop):
        name = run.path.name
        self.did.append(name)
        self.configs[name] = config
        broken = self.breaks.pop(name, None)
        if isinstance(broken, Exception):
            raise broken
        if broken is not None:
            return broken
        if name in ("cold_start_data", "rejection_sampling"):
            (run.path / "dataset.jsonl").write_text('{"origin": "self"}\n')
        else:
            checkpoint = run.path / "checkpoints" / "step-1"
            checkpoint.mkdir(parents=True)
            run.point_model_to(checkpoint)
        State(done=[STAGES[name].ends_with]).write(run)
        return Outcome.FINISHED

    def measure(self, session, *, stage, folder):
        self.measured.append(
            (stage, folder.parent.parent.name if "stages" in folder.parts else folder.name)
        )
        with session.start(f"measure_{stage}", steps=1) as meter:
            session.run.write_json(
                f"measure_{stage}.json", ModelResult(stage=stage, **_NOTHING).model_dump()
            )
            session.receipt(f"measure_{stage}", meter)
        return Outcome.FINISHED


@pytest.fixture(scope="module")
def here():
    return environment()


@pytest.fixture
def doer(monkeypatch, here) -> Doer:
    one = Doer()
    monkeypatch.setattr("nalar.run.environment", lambda: here)  # which asks git, for every run
    monkeypatch.setattr(r1_module, "run_as_its_kind", one.stage)
    monkeypatch.setattr(r1_module, "measure", one.measure)
    return one


@pytest.fixture
def go(tmp_path, doer, recorder):
    """Begins a pipeline, or goes on with it."""

    def go(config=None, *, first=None, last=None, watching=None):
        config = config or config_of()
        path = tmp_path / "runs" / "r"
        if (path / "run.json").exists():
            run = Run.open(path)
        else:
            run = Run.create(path.parent, "r", config.model_dump(mode="json"), "nalar r1", 0)
        stop = lambda: False  # noqa: E731
        return run, run_r1(config, run, watching or recorder, stop, first=first, last=last)

    return go


def test_all_stages_are_done_in_order_and_each_model_measured_when_it_is_made(go, doer, recorder):
    run, outcome = go()
    assert outcome is Outcome.FINISHED
    assert tuple(doer.did) == ORDER
    assert [stage for stage, _ in doer.measured] == [
        *("pretrain", "zero", "cold_start", "rl1", "sft", "rl2", "student", "distil", "on_policy")
    ]
    assert ("pretrain", "base-folder") in doer.measured
    assert ("rl1", "rl1") in doer.measured
    assert [name for name in recorder.finished if not name.startswith("measure")] == list(ORDER)
    assert (run.path / "r1.json").is_file()


def test_a_stage_gets_paths_in_place_of_references_and_the_pipelines_own_settings(go, doer):
    run, _ = go(config_of(seed=7, threads=1, dtype="bfloat16"))
    model = (run.path / "stages" / "cold_start" / "checkpoints" / "step-1").resolve()
    rl1, sft = doer.configs["rl1"], doer.configs["sft"]
    assert (rl1.model, sft.model) == (str(model), "base-folder")
    assert sft.data.path == str(stage_path(run, "rejection_sampling").resolve() / "dataset.jsonl")
    assert {c.dtype for c in doer.configs.values()} == {"bfloat16"}
    assert {c.threads for c in doer.configs.values()} == {1}
    seeds = [c.seed for c in doer.configs.values()]
    assert len(set(seeds)) == len(seeds)
    assert Run.open(stage_path(run, "rl1")).info.config["model"] == str(model)


def test_doing_it_again_does_nothing(go, doer):
    run, _ = go()
    before = {path: path.stat().st_mtime_ns for path in (run.path / "stages").rglob("*")}
    doer.did.clear(), doer.measured.clear()
    _, outcome = go()
    assert outcome is Outcome.FINISHED
    assert (doer.did, doer.measured) == ([], [])
    assert before == {path: path.stat().st_mtime_ns for path in (run.path / "stages").rglob("*")}


@pytest.mark.few(4)
@pytest.mark.parametrize("broken", ORDER)
def test_what_was_done_stays_done_and_the_rest_goes_on(broken, go, doer):
    doer.breaks[broken] = UserError(at="filters", got="nothing kept", want="one at least")
    with pytest.raises(UserError, match=f"stage {broken}: filters: got nothing kept"):
        go()
    first, doer.did = doer.did, []
    assert tuple(first) == ORDER[: ORDER.index(broken) + 1]
    _, outcome = go()
    assert outcome is Outcome.FINISHED
    assert tuple(doer.did) == ORDER[ORDER.index(broken) :]
    assert len({stage for stage, _ in doer.measured}) == len(doer.measured) == 9


def test_a_stop_ends_the_pipeline_and_it_goes_on(go, doer):
    doer.breaks["rl1"] = Outcome.STOPPED
    assert go()[1] is Outcome.STOPPED
    assert doer.did[-1] == "rl1"
    assert go()[1] is Outcome.FINISHED


def test_a_measurement_that_was_moved_away_is_made_again(go, doer):
    run, _ = go()
    (run.path / "measure_rl1.json").unlink()
    doer.did.clear(), doer.measured.clear()
    go()
    assert (doer.did, doer.measured[0][0]) == ([], "rl1")
    assert (run.path / "measure_rl1.json").is_file()


def test_a_model_that_nothing_asks_for_any_more_may_go(go, doer):
    run, _ = go()
    (run.path / "stages" / "rl1" / "model").unlink()
    assert go()[1] is Outcome.FINISHED


def test_a_dataset_that_was_cut_short_is_not_learned_from(go, doer):
    run, _ = go(last="rejection_sampling")
    folder = stage_path(run, "rejection_sampling")
    run_of = Run.open(folder)
    written = hashlib.sha256((folder / "dataset.jsonl").read_bytes()).hexdigest()
    run_of.write_json("collect.json", {"dataset": written})
    (folder / "dataset.jsonl").write_text('{"origin"')
    with pytest.raises(UserError, match=r"stage rejection_sampling: got another dataset\.jsonl"):
        go()
    assert doer.did[-1] == "rejection_sampling"


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ("a smaller --rl.max-tokens", "a smaller --set zero.rl.max_tokens"),
        ("--max-prompt-tokens 70, or more", "--set zero.max_prompt_tokens=70, or more"),
        ("--resume goes on", "--resume goes on"),
        ("--no-rl.mask-truncated", "--no-rl.mask-truncated"),
        ("--rl.no-mask-truncated", "--set zero.rl.mask_truncated=false"),
    ],
)
def test_what_a_verb_says_to_try_is_said_as_a_setting_of_the_pipeline(hint, said):
    told = of_stage(config_of(), "zero", UserError(at="x", got="y", want="z", hint=hint))
    assert (told.at, told.hint) == ("stage zero: x", said)


def test_from_and_to_choose_stages_and_both_are_done(go, doer):
    go(last="cold_start_data")
    assert doer.did == ["zero", "cold_start_data"]
    doer.did.clear()
    go(first="cold_start", last="rl1")
    assert doer.did == ["cold_start", "rl1"]
    doer.did.clear()
    run, _ = go(first="rl1", last="rejection_sampling")
    assert doer.did == ["rejection_sampling"]
    assert standing(run, "sft") == "left"


def test_a_missing_input_names_the_stage_that_wants_it_and_the_one_that_makes_it(go, doer):
    with pytest.raises(UserError) as told:
        go(first="rl2")
    assert str(told.value).splitlines() == [
        "stage rl2: got no model of sft, which is not done",
        "  wanted: the model of sft",
        "  try: --from zero",
    ]
    with pytest.raises(UserError, match="stage sft: got no dataset of rejection_sampling"):
        go(first="sft", last="sft")
    assert doer.did == []


def test_an_input_that_was_there_and_is_gone_is_named(go, doer):
    run, _ = go(last="rl1")
    (run.path / "stages" / "rl1" / "model").unlink()
    with pytest.raises(UserError) as told:
        go()
    assert told.value.at == "stage rl1"
    assert "rejection_sampling" not in doer.did


@pytest.mark.parametrize(
    ("first", "last", "at", "got"),
    [
        ("rl2", "sft", "--to", "sft with --from rl2"),
        ("rl3", None, "--from", "'rl3'"),
        (None, "pretrain", "--to", "pretrain, which this pipeline has off"),
    ],
)
def test_a_choice_of_stages_that_cannot_be_is_refused(first, last, at, got, go, doer):
    with pytest.raises(UserError) as told:
        go(first=first, last=last)
    assert (told.value.at, told.value.got) == (at, got)
    assert doer.did == []


def test_another_config_of_a_stage_that_was_begun_is_refused(go, doer):
    doer.breaks["zero"] = Outcome.STOPPED
    go()
    changed = settings()
    changed["zero"] = changed["zero"] | {"max_prompt_tokens": 99}
    with pytest.raises(ConfigError, match="max_prompt_tokens"):
        go(R1Config.model_validate(changed))


def test_a_pipeline_that_was_moved_goes_on(go, doer, tmp_path, recorder):
    doer.breaks["rl1"] = Outcome.STOPPED
    run, _ = go()
    moved = tmp_path / "elsewhere"
    run.path.rename(moved)
    assert run_r1(config_of(), Run.open(moved), recorder, lambda: False) is Outcome.FINISHED
    assert doer.configs["rl1"].model.startswith(str(moved.resolve()))


def test_its_model_is_the_last_that_is_not_a_student(go):
    run, _ = go(last="rl1")
    assert run.model_dir().resolve() == (stage_path(run, "rl1") / "model").resolve()
    run, _ = go()
    assert run.model_dir().resolve() == (stage_path(run, "rl2") / "model").resolve()


@pytest.mark.parametrize(
    ("changes", "at", "got"),
    [
        ({"base": None}, "base", "neither a base nor its pretraining"),
        ({"zero": None}, "cold_start_data.model", "@zero, and the stage zero is off"),
        ({"student_base": None}, "distil.model", "@student, and the stage student is off"),
        ({"recipe": "mine"}, "recipe", "'mine'"),
    ],
)
def test_stages_that_cannot_work_together_are_refused(changes, at, got):
    with pytest.raises(ConfigError) as told:
        config_of(**changes)
    assert (told.value.at, told.value.got) == (at, got)


@pytest.mark.parametrize(
    ("stage", "changes", "at", "got"),
    [
        ("rl1", {"model": "@sft"}, "rl1.model", "@sft, which is made by sft"),
        ("zero", {"model": "@zero"}, "zero.model", "@zero, which is made by zero"),
        ("rl1", {"model": "@rl_1"}, "rl1.model: @", "'rl_1'"),
        (
            "cold_start",
            {"model": "@cold_start_data"},
            "cold_start.model",
            "@cold_start_data, which is a dataset",
        ),
        (
            "cold_start",
            {"data": {"kind": "files", "path": "@zero"}},
            "cold_start.data.path",
            "@zero, which is a model",
        ),
        ("rl2", {"model": "@safety_model"}, "rl2.model", "@safety_model, which is a reward model"),
        ("rl1", {"threads": 3}, "rl1.threads", "3"),
        ("rl1", {"seed": 3}, "rl1.seed", "3"),
    ],
)
def test_a_stage_in_the_wrong_place_is_refused_by_name(stage, changes, at, got):
    given = settings()
    given[stage] = given[stage] | changes
    with pytest.raises(ConfigError) as told:
        R1Config.model_validate(given)
    assert (told.value.at, told.value.got) == (at, got)


def test_what_a_stage_needs_is_what_its_settings_refer_to():
    config = config_of()
    assert references(config, "sft") == [("model", "base"), ("data.path", "rejection_sampling")]
    assert inputs(config, "sft") == ("rejection_sampling",)  # the base is given
    assert inputs(config, "on_policy") == ("distil",)


def test_a_config_reads_back_as_it_was_written():
    config = config_of()
    assert R1Config.model_validate_json(config.model_dump_json()) == config


def test_who_was_taught_to_answer_without_a_thought_follows_from_the_data():
    config = config_of()
    taught = [name for name in config.stages if taught_switch(config, name)]
    assert set(taught) == {
        *("rejection_sampling", "sft", "preference_model", "safety_model", "rl2"),
        *("distil", "on_policy"),
    }


def test_a_stage_whose_settings_clash_with_its_place_is_named():
    config = config_of()
    own = stage_config(config, "rl1", lambda name: f"/{name}")
    assert isinstance(own, RlRunConfig)
    assert own.model == "/cold_start"
    assert Path(config.base).name == "base-folder"


def test_a_model_that_is_given_is_taken_in_once_where_it_has_to_be(
    go, doer, tmp_path, monkeypatch, recorder
):
    folder = tmp_path / "theirs"
    folder.mkdir()
    calls = []

    def adopted(given, target):
        calls.append(given)
        target.mkdir(parents=True)
        return target

    monkeypatch.setattr(r1_module, "adopted", adopted)
    run, _ = go(config_of(base=str(folder)), last="zero")
    assert doer.configs["zero"].model == str((run.path / "adopted" / "base").resolve())
    assert any("taken in" in note for note in recorder.notes)
    go(config_of(base=str(folder)), last="rl1")
    assert calls == [folder]
