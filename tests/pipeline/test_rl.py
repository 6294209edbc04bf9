"""RL from a model that is there: it learns a task of one's own, goes on to the bit, and refuses what cannot work."""

import json
import shutil
from pathlib import Path

import pytest

from nalar.config import ConfigError, UserError
from nalar.data.template import CHAT_TEMPLATE
from nalar.evals.report import build_report
from nalar.evals.report_html import render_html
from nalar.evals.table import plain, summary
from nalar.pipeline.config import RlRunConfig, ZeroConfig
from nalar.pipeline.rl import plan_rl, run_rl
from nalar.pipeline.state import Outcome
from nalar.pipeline.tasks import open_as_set, refuse_bad_tasks
from nalar.run import Run

STAGES = ("evaluate_base", "rl", "evaluate_final")
EVEN = """
def make(rng):
    a, b = rng.randrange(1, 10), rng.randrange(1, 10)
    return {"prompt": f"{a}+{b}-{rng.randrange(1000)}", "answer": "2"}

def score(problem, answer):
    return answer.strip()[-1:] in ("0", "2", "4", "6", "8")
"""
"""A task that a base which answers with numbers does by half, and whose best answer does not depend on the problem."""


@pytest.fixture(scope="module")
def base(finished) -> Path:
    """The base of the shrunk recipe, before RL: it answers chains of sums with some number."""
    return max((finished[0].path / "checkpoints").glob("pretrain-*"))


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("task") / "even.py"
    path.write_text(EVEN)
    return str(path)


@pytest.fixture(scope="module")
def make_config(base, task):
    def make(tasks: tuple[str, ...] = (task,), **changes) -> RlRunConfig:
        rl = {
            "steps": 8,
            "tasks": tasks,
            "prompts_per_step": 8,
            "group_size": 8,
            "max_tokens": 24,
            "save_every_steps": 4,
            "lr": 5e-3,
        }
        settings = {
            "threads": 1,
            "device": "cpu",
            "model": str(base),
            "rl": rl | changes.pop("rl", {}),
            "evals": {"tasks": tasks, "problems": 24, "k": 4, "max_tokens": 24},
        }
        return RlRunConfig.model_validate(settings | changes)

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
    work = make_work(tmp_path_factory.mktemp("whole"))
    run = work.create("run", make_config())
    assert go(run) is Outcome.FINISHED
    return run


def files(run) -> dict[str, bytes]:
    """All that is not a log, a clock or a page."""
    kept = ("checkpoints", "samples", "rollouts")
    return {
        name: path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file()
        and (name := str(path.relative_to(run.path))).startswith(kept)
        and not name.endswith(("progress.json", "manifest.json"))
    }


def test_a_model_learns_a_task_of_ones_own(whole):
    before, after = (
        whole.read_json(f"results_{when}.json")["even"] for when in ("before", "after")
    )
    assert before["n"] == after["n"] == 24
    assert before["pass_at_1"]["mean"] < 0.7
    assert after["pass_at_1"]["mean"] > before["pass_at_1"]["mean"] + 0.2


def test_the_run_has_the_files_of_every_run(whole):
    stages = ["evaluate_base", "rl", "evaluate_final", "report"]
    assert [total.name for total in whole.stage_totals()] == stages
    assert whole.read_json("state.json")["done"] == stages
    assert (whole.path / "model").readlink() == Path("checkpoints/rl-000008")
    assert (whole.path / "report.html").exists()


def test_the_report_says_what_became_of_any_task(whole):
    report = build_report(whole)
    assert report.is_complete and set(report.difference) == {"even"}
    assert report.model is not None and report.model.total_params > 10_000
    assert {"even"} == set(report.curves.accuracy) == set(report.curves.response_tokens)
    for curve in (report.curves.reward, report.curves.entropy):
        assert curve is not None and 4 <= len(curve.x) <= 8
    assert report.baselines is not None and report.baselines.constant["even"].answer == "2"
    text, page = plain(summary(report)), render_html(report, folder="runs/run")
    assert "random weights" not in text and "trained from checkpoints/pretrain-" in text
    assert "Reward over RL" in page and "Entropy of the next token" in page
    assert "countdown" not in page.lower()


@pytest.mark.slow
@pytest.mark.parametrize("at", [("rl", 7), ("evaluate_base", 1)])
def test_a_run_that_was_interrupted_ends_the_same_to_the_bit(at, make_config, whole, work, go):
    run = work.create("run", make_config())
    work.interrupted(go, run, at)
    assert go(run) is Outcome.FINISHED
    assert files(run) == files(whole) and len(files(run)) >= 6
    assert work.timeless(run, *STAGES) == work.timeless(whole, *STAGES)


@pytest.mark.slow
def test_a_curriculum_that_was_interrupted_draws_the_same(make_config, work, go):
    """It does step 5 again, by the rates that the checkpoint of step 4 remembers."""
    rl = {"steps": 6, "curriculum": {"focus": 2.0, "explore_frac": 0.1, "memory_problems": 4}}
    levels = ("chain_sum,min_terms=2..4,max_terms=2..4",)
    rl |= {"rollout": {"save_every_steps": 1}, "prompts_per_step": 6, "group_size": 4}
    config = make_config(levels, rl=rl)
    config = config.model_copy(
        update={"evals": config.evals.model_copy(update={"problems": 2, "k": 2})}
    )
    whole, run = work.create("whole", config), work.create("run", config)
    assert go(whole) is Outcome.FINISHED
    work.interrupted(go, run, ("rl", 5))
    (last,) = (run.path / "checkpoints").glob("rl-*")
    remembered = json.loads((last / "state" / "loop.json").read_text())["levels"]["chain_sum"]
    assert len(remembered) == 3 and sum(tried for _, tried in remembered.values()) > 3
    assert go(run) is Outcome.FINISHED
    assert files(run) == files(whole) and work.timeless(run, *STAGES) == work.timeless(
        whole, *STAGES
    )
    names = {name for m in whole.metrics("rl") for name in m.values}
    for metric in ("level_frac", "level_accuracy"):
        assert f"{metric}/chain_sum,min_terms=2,max_terms=2" in names


@pytest.mark.slow
def test_a_stop_is_heard_and_saved(make_config, whole, work, go):
    run, asked = work.create("run", make_config()), iter([False] * 4 + [True] * 9)
    assert go(run, should_stop=lambda: next(asked)) is Outcome.STOPPED
    assert go(run) is Outcome.FINISHED
    assert work.timeless(run, *STAGES) == work.timeless(whole, *STAGES)


def test_families_files_and_own_tasks_are_trained_together(
    make_config, task, work, go, tmp_path, recorder
):
    problems = [
        {"question": f"{i} and {j}?", "answer": str(i + j)} for i in range(9) for j in range(9)
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, problems)))
    words = (task, "chain_sum,min_terms=2,max_terms=2", f"{tmp_path}/sums.jsonl,name=plus")
    config = make_config(words, rl={"steps": 1, "prompts_per_step": 6})
    config = config.model_copy(update={"evals": config.evals.model_copy(update={"problems": 6})})
    run = work.create("run", config)
    refuse_bad_tasks(config)
    assert go(run, observer=recorder) is Outcome.FINISHED
    names = {"even", "chain_sum", "plus"}
    assert set(run.read_json("results_after.json")) == names
    assert {row["task"] for row in run.samples("evaluate_final")} == names
    assert {f"accuracy/{name}" for name in names} <= run.metrics("rl")[0].values.keys()
    assert set(build_report(run).difference) == names


@pytest.mark.slow
def test_a_recipe_trains_on_tasks_that_its_corpus_does_not_teach(shrunk, work, recorder):
    config = shrunk.model_dump()
    words = ("arithmetic,max_digits=1", "chain_sum")
    config["rl"] |= {"tasks": words, "steps": 1}
    config["evals"]["tasks"] = words
    run = work.create("a", ZeroConfig.model_validate(config))
    assert work.go(run, observer=recorder) is Outcome.FINISHED
    assert set(run.read_json("results_after.json")) == {"arithmetic", "chain_sum"}


def test_a_plain_id_means_the_task_as_the_corpus_sets_it(shrunk):
    document = shrunk.model_dump()
    document["corpus"]["chain_sum"] |= {"min_terms": 3, "max_terms": 3}
    config = ZeroConfig.model_validate(document)
    prompt = open_as_set("chain_sum", config, at="x").problems("test", 1, 0)[0].prompt
    assert sum(sign in "+-" for sign in prompt) == 2
    longer = open_as_set("chain_sum,min_terms=9,max_terms=9", config, at="x")
    assert sum(sign in "+-" for sign in longer.problems("test", 1, 0)[0].prompt) == 8


def test_a_task_file_that_changed_since_the_run_began_is_refused(make_config, work, go, tmp_path):
    path = tmp_path / "even.py"
    path.write_text(EVEN)
    run, asked = (
        work.create("run", make_config((str(path),), rl={"steps": 2})),
        iter([False] * 2 + [True] * 9),
    )
    assert go(run, should_stop=lambda: next(asked)) is Outcome.STOPPED
    path.write_text(EVEN.replace('"0", ', ""))
    with pytest.raises(UserError, match="another file than the run began with"):
        go(run)
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        go(run)
    path.write_text(EVEN)
    assert go(run) is Outcome.FINISHED


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0].content }}", "without </think>, which has no place for a thought"),
        (CHAT_TEMPLATE + "!", "another chat template than nalar's own"),
        (None, "no chat template"),
    ],
)
def test_a_base_with_another_way_of_talking_is_refused(
    template, words, make_config, base, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=words):
        plan_rl(make_config(model=str(folder)))


def test_what_does_not_fit_the_model_is_refused(make_config):
    with pytest.raises(ConfigError, match="room for a prompt of max_prompt_tokens=64"):
        plan_rl(make_config(rl={"max_tokens": 90}))
    with pytest.raises(UserError, match=r"a prompt of \d+ tokens: '\d\+\d"):
        plan_rl(make_config(max_prompt_tokens=8))


@pytest.mark.parametrize(
    ("lines", "settings", "words"),
    [
        ([], "", "no problem|nothing|no records|at least one"),
        (["1+1", "1+1"], "", "again"),
        (["1+1", "1+2", "1+3"], ",split=train", "no test problem"),
    ],
)
def test_bad_problem_files_are_refused(lines, settings, words, make_config, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({"question": q, "answer": "1"}) for q in lines))
    with pytest.raises(UserError, match=words):
        refuse_bad_tasks(make_config((f"{path}{settings}",)))


def test_held_out_problems_that_are_trained_on_are_refused(make_config, tmp_path):
    lines = [json.dumps({"question": f"{i}+1", "answer": str(i + 1)}) for i in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "test.jsonl").write_text("\n".join(lines[-1:]))
    train, test = f"{tmp_path}/train.jsonl,split=train", f"{tmp_path}/test.jsonl,split=test"
    config = make_config((train,), evals={"tasks": (test,)})
    with pytest.raises(UserError, match=r"trained on too.*39\+1"):
        refuse_bad_tasks(config)


def test_a_task_whose_gold_fails_is_refused_with_its_problem(make_config, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(EVEN.replace('"answer": "2"', '"answer": "3"'))
    with pytest.raises(UserError, match=r"its own answer '3' scored as wrong; the problem: '\d"):
        refuse_bad_tasks(make_config((str(path),)))


def test_a_word_that_means_no_task_names_the_nearest(make_config):
    with pytest.raises(ConfigError, match="did you mean 'countdown'"):
        make_config(("countdwn,num_numbers=4",))
