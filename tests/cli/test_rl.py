"""`nalar rl` from the command line: its words, its presets, what it refuses before anything is written."""

import json
from pathlib import Path

import pytest

from nalar.cli import drive, flags
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model
from nalar.pipeline.preflight import Machine
from nalar.recipes.zero import zero_tiny
from nalar.run import Run

TASK = "chain_sum,min_terms=2,max_terms=2"
SIZES = (
    *("--rl.steps", "2", "--rl.prompts-per-step", "2", "--rl.group-size", "2"),
    *("--rl.max-tokens", "8", "--evals.max-tokens", "8", "--evals.problems", "3", "--evals.k", "2"),
    *("--threads", "1", "--device", "cpu"),
)


@pytest.fixture
def here(monkeypatch, tmp_path) -> Path:
    """A folder with a model in it that has learned nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drive, "this_machine", lambda root: Machine(8, 10**11, 10**12))
    tokenizer = Tokenizer.train(["say 1 is 2"] * 4, TokenizerConfig(vocab_size=262))
    small = {"vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 2, "n_routed_experts": 4}
    model = Transformer(zero_tiny().model.model_copy(update=small))
    model.initialize(seed=0)
    (tmp_path / "base").mkdir()
    save_model(model, tmp_path / "base", token_ids={"eos_token_id": tokenizer.end_id})
    tokenizer.save(tmp_path / "base")
    return tmp_path


def test_rl_from_start_to_a_report_and_to_samples(here, nalar_):
    called = nalar_("rl", "--model", "base", "--task", TASK, "--run", "a", *SIZES, "--json")
    assert called.code == 0, called.err
    document = called.document
    assert (document["run"], document["outcome"]) == ("runs/a", "finished")
    assert set(document["report"]["results"]["after"]) == {"chain_sum"}
    shown = nalar_("samples", "a", "--json").document
    assert shown["steps"] == [1, 2] and len(shown["groups"]) == 2
    measured = nalar_("eval", "a", "--problems", "2", "--k", "1", "--json")
    assert measured.document[TASK]["n"] == 2
    again = nalar_("rl", "a", "--json")
    assert (again.code, again.document["outcome"]) == (0, "finished")
    resumed = nalar_("rl", "--run", "a", "--resume", "--json")
    assert (resumed.code, resumed.document["outcome"]) == (0, "finished")
    other = nalar_("rl", "--run", "a", "--resume", "--rl.lr", "1")
    assert other.code == 2 and "rl.lr" in other.err
    assert "a run of `nalar rl`" in nalar_("demo", "--run", "a", "--resume").err


def planned(nalar_, *words):
    called = nalar_("rl", "--model", "base", *words, "--dry-run", "--json")
    assert called.code == 0, called.err
    return called.document["config"]


def test_tasks_are_named_after_one_flag_or_after_several(here, nalar_):
    words = ("--task", TASK, "sorting", "--json", "--task=arithmetic", "--task", "sorting", *SIZES)
    config = planned(nalar_, *words, "--max-prompt-tokens", "128")
    assert config["rl"]["tasks"] == [TASK, "sorting", "arithmetic", "sorting"]
    assert config["evals"]["tasks"] == [TASK, "sorting", "arithmetic"]
    assert config["model"] == str(here / "base")
    config = planned(nalar_, "--task", TASK, "--evals.tasks", TASK, "countdown", *SIZES)
    assert (config["rl"]["tasks"], config["evals"]["tasks"]) == ([TASK], [TASK, "countdown"])
    assert not (here / "runs").exists()


def test_a_curriculum_is_a_flag_and_so_are_tools(here, nalar_):
    words = ("--task", "chain_sum,min_terms=2..3,max_terms=2..3", "--rl.curriculum.focus", "2")
    curriculum = planned(nalar_, *words, *SIZES)["rl"]["curriculum"]
    assert curriculum == {"focus": 2.0, "explore_frac": 0.2, "memory_problems": 16.0}
    called = nalar_("rl", "--model", "base", "--task", TASK, "--tools.names", "calculator", *SIZES)
    assert called.code == 2 and "without ids for calls" in called.err
    assert not (here / "runs").exists()


def test_a_file_says_how_many_problems_are_of_each_split(here, nalar_):
    lines = [json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) for i in range(40)]
    (here / "few.jsonl").write_text("\n".join(lines))
    words = ("--model", "base", "--task", "few.jsonl", "--run", "f", *SIZES)
    dry = nalar_("rl", *words, "--dry-run").out
    (said,) = (line for line in dry.splitlines() if line.startswith("problems"))
    assert said.startswith("problems      few.jsonl: ")
    counts = [int(word) for word in said.replace(",", "").split() if word.isdecimal()]
    assert len(counts) == 3 and sum(counts) == 40 and counts[0] > counts[2] > 0
    assert said.split(maxsplit=1)[1] in nalar_("rl", *words).out
    measured = nalar_("eval", "f", "--k", "1").out
    assert f"(the file has {counts[2]} of this split, 40 in all; split=test" in measured
    measured = nalar_("eval", "f", "--k", "1", "--task", "few.jsonl,split=test").out
    assert "(the file has 40 of this split, 40 in all)" in measured


def test_a_reward_that_is_not_finite_is_refused_with_its_problem(here, nalar_):
    weights = ("--rl.reward.correct", "1e308", "--rl.reward.well-formed", "1e308")
    called = nalar_("rl", "--model", "base", "--task", TASK, *SIZES, *weights)
    assert called.code == 2 and "a reward of inf" in called.err and "the problem: '" in called.err
    called = nalar_("demo", "zero-tiny", *weights)
    assert called.code == 2 and "a reward of inf" in called.err
    assert not (here / "runs").exists()


def test_values_of_a_flag_are_gathered():
    words = ["x", "--task", "a", "b", "--json", "--task=c", "--k", "2", "--task", "d"]
    assert flags.gathered(words, "--task") == [
        "x",
        "--task",
        "a",
        "b",
        "c",
        "d",
        "--json",
        "--k",
        "2",
    ]
    assert flags.gathered(["--k", "2"], "--task") == ["--k", "2"]


def test_a_preset_sets_defaults_that_flags_change(here, nalar_):
    plain = planned(nalar_, "--task", TASK, *SIZES)["rl"]
    gspo = planned(nalar_, "--task", TASK, "--preset", "gspo", *SIZES)["rl"]
    assert (plain["objective"]["name"], gspo["objective"]["name"]) == ("clip", "gspo")
    assert gspo["steps"] == 2
    words = ("--preset", "gspo", "--rl.objective.clip-high", "5e-4")
    changed = planned(nalar_, "--task", TASK, *words, *SIZES)["rl"]
    assert (changed["objective"]["name"], changed["objective"]["clip_high"]) == ("gspo", 5e-4)
    called = nalar_("demo", "zero-tiny", "--preset", "dapo", "--dry-run", "--json")
    assert called.document["config"]["rl"]["mask_truncated"] is True
    wrong = nalar_("rl", "--model", "base", "--task", TASK, "--preset", "dapoo")
    assert wrong.code == 2 and "did you mean 'dapo'?" in wrong.err


def test_a_preset_is_no_way_to_change_a_run_that_goes_on(here, nalar_):
    words = ("rl", "--model", "base", "--task", TASK, "--run", "a", *SIZES)
    assert nalar_(*words).code == 0
    called = nalar_("rl", "--run", "a", "--resume", "--preset", "gspo")
    assert called.code == 2 and "rl." in called.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--task", TASK), "--model: got no model"),
        (("--model", "base"), "--task: got no task"),
        (
            ("--model", "nowhere", "--task", TASK),
            "runs/nowhere: got no such folder\n  wanted: a run, or",
        ),
        (("--model", "./nowhere", "--task", TASK), "nowhere: got no such folder"),
        (("--model", "base", "--task", "chain_sun"), "did you mean 'chain_sum'?"),
        (("--model", "base", "--task", "no.py"), "no such file"),
        (("--model", "base", "--task", TASK, "--max-prompt-tokens", "5"), "a prompt of "),
        (("--model", "base", "--task", "bad.py"), "scored as wrong; the problem: 'what?"),
        (("--model", "base", "--task", TASK, "--rl.tusks", "x"), "unknown flag --rl.tusks"),
        (("--model", "base", "--task", TASK, "--rl.steps", "3x"), "'3x'\n  wanted: a whole number"),
        (("--model", "base", "--task", TASK, "--rl.lr", "1o"), "'1o'\n  wanted: a number"),
        (
            ("--model", "base", "--task", TASK, "--rl.curriculum.focus", "2"),
            "rl.curriculum.focus: got 2.0, and no task with levels",
        ),
        (
            ("base", "--rl.steps", "3"),
            "unknown flag --rl.steps\n  wanted: --force, --dry-run, --json",
        ),
        (("base", "--resume"), "a run goes on by its own config"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(words, said, here, nalar_):
    (here / "bad.py").write_text(
        "def make(rng):\n    return {'prompt': f'what? {rng.random()}', 'answer': 'a'}\n"
        "def score(problem, answer):\n    return False\n"
    )
    called = nalar_("rl", *words)
    assert called.code == 2 and said in called.err
    assert not (here / "runs").exists()


def test_a_chat_template_without_a_place_for_thoughts_is_refused(here, nalar_):
    (here / "base" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    called = nalar_("rl", "--model", "base", "--task", TASK, "--json", *SIZES)
    assert called.code == 2
    assert "which has no place for a thought" in called.document["error"]["got"]
    assert not (here / "runs").exists()


def test_a_run_that_cannot_be_read_any_more_still_lends_its_model(here, nalar_):
    run = Run.create(here / "runs", "old", {"recipe": "zero-cpu", "gone": 1}, "nalar demo", 0)
    folder = run.checkpoint_dir("pretrain-000001")
    folder.parent.mkdir()
    (here / "base").rename(folder)
    run.point_model_to(folder)
    called = nalar_("rl", "--model", "old", "--task", TASK, *SIZES, "--dry-run", "--json")
    assert called.code == 0, called.err
    assert json.loads(called.out)["config"]["model"] == str(folder)
