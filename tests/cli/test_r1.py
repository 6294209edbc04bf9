"""`nalar r1` from the command line, over a pipeline that takes no time."""

import json
from pathlib import Path

import pytest

import nalar.pipeline.r1 as r1_module
from nalar.cli import r1 as cli_module
from nalar.cli import r1_drive
from nalar.cli.r1_display import TreeDisplay, split_name
from nalar.config import UserError
from nalar.pipeline.preflight import Machine
from nalar.pipeline.r1_config import R1Config
from nalar.pipeline.state import Outcome, State
from nalar.plan.r1_stages import STAGES
from nalar.recipes.zero import zero_tiny
from nalar.run import Run

TASK = "chain_sum"
EVALS = {"tasks": (TASK,), "problems": 4, "k": 2, "max_tokens": 24}


def small() -> R1Config:
    """Three stages."""
    zero = zero_tiny().model_dump(mode="json") | {"device": "auto", "probe": None}
    rl = {"rl": {"steps": 2, "tasks": (TASK,), "max_tokens": 24}, "evals": EVALS}
    return R1Config.model_validate(
        {
            "recipe": "r1-small",
            "threads": 1,
            "device": "cpu",
            "pretrain": zero,
            "zero": {"model": "@base"} | rl,
            "rl1": {"model": "@zero"} | rl,
            "measure": {"evals": EVALS},
        }
    )


def of_files() -> R1Config:
    """A recipe that wants a base and problems."""
    given = small().model_dump(mode="json")
    given |= {"recipe": "r1-files", "base": "base-model", "pretrain": None}
    for stage in ("zero", "rl1"):
        given[stage]["rl"]["tasks"] = given[stage]["evals"]["tasks"] = ["problems.jsonl"]
    given["measure"]["evals"]["tasks"] = ["problems.jsonl"]
    return R1Config.model_validate(given)


class Fake:
    """Stands in for what stages do."""

    def __init__(self):
        self.did, self.outcome = [], Outcome.FINISHED

    def stage(self, config, run, observer, should_stop):
        self.did.append((run.path.name, config))
        observer.stage_started("work", steps=1)
        observer.step("work", 1, {"loss": 1.5, "usd": 0.001, "wall_s": 1.0, "tokens_per_s": 9.0})
        observer.stage_finished("work")
        if self.outcome is not Outcome.FINISHED:
            return self.outcome
        (run.path / "checkpoints" / "step-1").mkdir(parents=True)
        run.point_model_to(run.path / "checkpoints" / "step-1")
        State(done=[STAGES[run.path.name].ends_with]).write(run)
        return Outcome.FINISHED

    def measure(self, session, *, stage, folder):
        with session.start(f"measure_{stage}", steps=1) as meter:
            session.receipt(f"measure_{stage}", meter)
        return Outcome.FINISHED


@pytest.fixture
def fake(monkeypatch, tmp_path) -> Fake:
    one = Fake()
    monkeypatch.setattr(r1_module, "run_as_its_kind", one.stage)
    monkeypatch.setattr(r1_module, "measure", one.measure)
    monkeypatch.setattr(r1_drive, "this_machine", lambda root: Machine(8, 10**11, 10**12))
    recipes = {"r1-small": small, "r1-files": of_files}
    monkeypatch.setattr(cli_module, "R1_RECIPES", recipes)
    monkeypatch.chdir(tmp_path)
    return one


def test_a_pipeline_from_start_to_its_report(fake, nalar_):
    called = nalar_("r1", "r1-small", "--seed", "3", "--json")
    assert called.code == 0, called.err
    document = called.document
    assert (document["run"], document["outcome"]) == ("runs/r1-small-1", "finished")
    assert document["done"] == ["pretrain", "zero", "rl1"] and document["resume"] is None
    assert document["report"]["schema_version"] == 1
    assert "left: pretrain, zero, rl1" in called.err
    assert "zero/work 1/1 · loss 1.500" in called.err
    assert "zero: done" in called.err
    assert "\x1b" not in called.out + called.err
    for name in ("r1.json", "report.html"):
        assert (Path("runs/r1-small-1") / name).is_file()
    assert Run.open(Path("runs/r1-small-1")).info.command == "nalar r1 r1-small --seed 3 --json"


def test_the_rest_of_a_pipeline_is_done_and_a_finished_one_does_nothing(fake, nalar_):
    called = nalar_("r1", "r1-small", "--run", "a", "--to", "zero", "--json")
    assert called.document["resume"] == "nalar r1 --run runs/a --resume"
    called = nalar_("r1", "--run", "a", "--resume")
    assert called.code == 0 and [name for name, _ in fake.did] == ["pretrain", "zero", "rl1"]
    assert "done before: pretrain, zero" in called.out
    called = nalar_("r1", "--run", "a", "--resume")
    assert called.code == 0 and len(fake.did) == 3
    assert "nothing was left to do" in called.out


def test_a_stop_says_how_to_go_on(fake, nalar_):
    fake.outcome = Outcome.STOPPED
    called = nalar_("r1", "r1-small", "--run", "a", "--json")
    assert (called.code, called.document["outcome"]) == (130, "stopped")
    assert called.document["resume"] == "nalar r1 --run runs/a --resume"


def test_settings_of_stages_are_set_by_dotted_names(fake, nalar_):
    words = ("--set", "zero.rl.steps=7", "rl1=null", "--set", "measure.evals.k=3")
    assert nalar_("r1", "r1-small", "--run", "a", *words).code == 0
    configs = dict(fake.did)
    assert configs["zero"].rl.steps == 7 and "rl1" not in configs
    assert Run.open(Path("runs/a")).info.config["measure"]["evals"]["k"] == 3


@pytest.mark.parametrize(
    ("words", "at", "says"),
    [
        (["--set", "zero.rl.step=7"], "--set zero.rl.step", "did you mean 'steps'"),
        (["--set", "zer0.rl.steps=7"], "--set zer0.rl.steps", "did you mean 'zero'"),
        (["--set", "zero.rl.steps"], "--set", "NAME.NAME=VALUE"),
        (["--set", "zero.rl.steps=many"], "--set zero.rl.steps", "many"),
        (["--set", "sft.lr=1"], "--set sft.lr", "off"),
        (["--set", "zero.seed=1"], "zero.seed", "--seed"),
        (["--set", "zero=null"], "rl1.model", "off"),
        (["--from", "rl2"], "--from", "off"),
        (["--from", "rl1"], "stage rl1", "--from pretrain"),
        (["--base", "nowhere"], "runs/nowhere", "no such folder"),
        (["--problems", "mine.jsonl"], "--problems", "r1-from-hf"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(words, at, says, fake, nalar_):
    called = nalar_("r1", "r1-small", *words, "--json")
    error = called.document["error"]
    assert (called.code, error["at"]) == (2, at)
    assert says in json.dumps(error)
    assert fake.did == [] and not Path("runs").exists()


def test_a_misspelt_recipe_names_the_nearest(fake, nalar_):
    error = nalar_("r1", "r1-smal", "--json").document["error"]
    assert error["hint"] == "did you mean 'r1-small'?"


def test_a_dry_run_prices_every_stage_and_writes_nothing(fake, nalar_, tmp_path):
    document = nalar_("r1", "r1-small", "--dry-run", "--usd-per-hour", "36", "--json").document
    stages = document["forecast"]["stages"]
    assert [stage["name"] for stage in stages] == ["pretrain", "zero", "rl1", "measure"]
    assert all(stage["tokens"] > 0 and stage["flops"] > 0 for stage in stages)
    total = sum(stage["wall_s"] for stage in stages)
    assert document["forecast"]["usd"] == pytest.approx(total / 100)
    assert document["config"]["price"]["usd_per_hour"] == 36
    assert list(tmp_path.iterdir()) == []


def test_what_the_user_brings_stands_where_the_recipe_wants_it(fake, nalar_, tmp_path):
    (tmp_path / "base" / "x").mkdir(parents=True)
    (tmp_path / "base" / "config.json").write_text("{}")
    asked = cli_module.R1(base="base", problems=("a.jsonl", "b.jsonl,boxed=true"))
    config = cli_module.configured(asked, of_files())
    assert config.base == str(tmp_path / "base")
    assert config.zero.rl.tasks == config.measure.evals.tasks == ("a.jsonl", "b.jsonl,boxed=true")
    same = cli_module.configured(cli_module.R1(problems=("problems.jsonl",)), of_files())
    assert same == of_files()
    for name in ("a.jsonl", "b.jsonl"):
        assert name in r1_drive.missing_files(config)


def test_files_that_are_not_there_are_refused_by_name_and_shown_by_a_dry_run(fake, nalar_):
    called = nalar_("r1", "r1-files", "--base", "qwen3-0.6b", "--dry-run")
    assert called.code == 0, called.err
    assert "not there yet problems.jsonl" in called.out
    error = nalar_("r1", "r1-files", "--base", "qwen3-0.6b", "--json").document["error"]
    assert (error["at"], error["got"]) == ("qwen3-0.6b", "nothing there")
    error = nalar_("r1", "r1-files", "--json").document["error"]
    assert (error["at"], error["hint"]) == ("base", "--base FOLDER")


def test_a_machine_that_is_too_small_is_refused(fake, nalar_, monkeypatch):
    monkeypatch.setattr(r1_drive, "this_machine", lambda root: Machine(8, 10**6, 10**12))
    called = nalar_("r1", "r1-small", "--json")
    assert (called.code, called.document["error"]["at"]) == (2, "memory")
    assert not Path("runs").exists()


def test_resume_refuses_flags_that_change_the_config(fake, nalar_):
    assert nalar_("r1", "r1-small", "--run", "a").code == 0
    assert nalar_("r1", "--run", "a", "--resume", "--threads", "1").code == 0
    error = nalar_("r1", "--run", "a", "--resume", "--set", "rl1.rl.lr=0.5", "--json").document[
        "error"
    ]
    assert error["at"] == "runs/a: rl1.rl.lr"


def test_runs_lists_and_shows_a_pipeline_and_its_stages(fake, nalar_):
    assert nalar_("r1", "r1-small", "--run", "a").code == 0
    [item] = nalar_("runs", "list", "--json").document["runs"]
    assert item["has_report"]
    shown = nalar_("runs", "show", "a", "--json").document
    assert shown["report"]["recipe"] == "r1-small"
    inner = nalar_("runs", "show", "runs/a/stages/zero", "--json").document
    assert inner["config"]["recipe"] == "rl"
    assert nalar_("report", "a").code == 0


def test_another_verb_says_which_one_goes_on_with_a_pipeline(fake, nalar_):
    assert nalar_("r1", "r1-small", "--run", "a").code == 0
    error = nalar_("demo", "--run", "a", "--resume", "--json").document["error"]
    assert error["hint"] == "nalar r1 --run runs/a --resume"


def test_names_of_stages_and_their_parts_are_told_apart():
    assert split_name("rl1/rl") == ("rl1", "rl")
    assert split_name("measure_rl1") == ("rl1", "measure")
    assert split_name("rl1") == ("rl1", "")


def test_the_tree_shows_what_is_done_what_runs_and_what_is_left():
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    tree = TreeDisplay(console, {}, ("pretrain", "zero", "rl1"), ("pretrain",))

    def lines() -> list[str]:
        with console.capture() as capture:
            console.print(tree.render())
        return [line.rstrip() for line in capture.get().splitlines()]

    assert [line.split()[:2] for line in lines()] == [
        ["✓", "pretrain"],
        ["·", "zero"],
        ["·", "rl1"],
    ]
    tree.stage_started("zero/rl", steps=4)
    tree.step("zero/rl", 2, {"reward": 0.5, "usd": 0.01, "wall_s": 3.0})
    shown = lines()
    assert shown[1].startswith("▶ zero") and "2/4" in shown[2] and "reward 0.500" in shown[3]
    tree.stage_finished("zero/rl")
    tree.stage_finished("zero")
    tree.stage_started("measure_zero", steps=2)
    shown = lines()
    assert shown[1].startswith("▶ zero")
    assert [line.split()[0] for line in shown[2:4]] == ["rl", "measure"]
    tree.stage_started("rl1/rl", steps=4)
    assert [line[0] for line in lines() if line[:1] in ("✓", "▶", "·")] == ["✓", "✓", "▶"]


def test_a_model_that_is_given_is_shown_while_it_is_measured():
    import io

    from rich.console import Console

    tree = TreeDisplay(Console(file=io.StringIO()), {}, ("zero",), ())
    tree.stage_started("measure_pretrain", steps=2)
    assert tree._shown() == ["pretrain", "zero"]


def test_a_text_is_what_json_cannot_read():
    from nalar.cli.overrides import overridden

    config = overridden(small(), ["zero.model=runs/b/model", 'zero.rl.tasks=["linear","units"]'])
    assert config.zero.model == "runs/b/model" and config.zero.rl.tasks == ("linear", "units")
    assert overridden(small(), ["zero.rl.tasks=linear"]).zero.rl.tasks == ("linear",)
    with pytest.raises(UserError):
        overridden(small(), ["zero.rl.tasks.x=1"])
