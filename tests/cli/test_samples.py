"""`nalar samples` on rollouts as a run writes them."""

import pytest

from nalar.data.config import TokenizerConfig
from nalar.data.dialogue import parse
from nalar.data.tokenizer import Tokenizer
from nalar.rl.config import RewardConfig, RLConfig
from nalar.rl.response import Response
from nalar.rl.rollout import Collected, Judged, rewarded
from nalar.rl.store import save_rollouts
from nalar.run import ROLLOUTS, Run
from nalar.tasks.problem import Problem, Score

CONFIG = RLConfig(steps=30, max_tokens=40, reward=RewardConfig(overlong=0.5))


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    """Two problems of two tasks at step 1, six of one at step 30."""
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.train(["one two"] * 4, TokenizerConfig(vocab_size=262))
    made = Run.create(tmp_path / "runs", "a", {"recipe": "rl", "model": "x"}, "nalar rl", 0)
    checkpoint = made.checkpoint_dir("rl-000030")
    tokenizer.save(checkpoint)
    made.point_model_to(checkpoint)

    def group(task: str, prompt: str, texts: list[str]):
        problem = Problem(task, prompt, prompt)
        responses, verdicts = [], []
        for text in texts:
            ids = tuple(tokenizer.encode(text, allow_special=True))
            whole = text.endswith("<|end|>")
            n = len(ids)
            responses.append(
                Response(ids, (-1.0,) * n, (True,) * n, (0,) * n, "stop" if whole else "length")
            )
            parsed = parse(tokenizer, ids)
            score = Score(
                parsed.answer == "two", whole, error="broken" * (parsed.answer == "?") or None
            )
            verdicts.append(Judged(parsed, score))
        return rewarded(problem, (1, 2), responses, verdicts, CONFIG)

    right, wrong, cut = "one</think>two<|end|>", "\x1b[31mone</think>one<|end|>", "one " * 10
    first = [group("even", "say two", [right, wrong, cut, "a</think>?<|end|>"])]
    same = [group("odd", "say it", [wrong, wrong])]
    save_rollouts(made.path / ROLLOUTS, 1, Collected(0, first, same))
    many = [group("even", f"say {i}", [right, wrong]) for i in range(6)]
    save_rollouts(made.path / ROLLOUTS, 30, Collected(29, many))
    return made


def test_a_group_stands_with_what_each_part_earned(run, nalar_):
    called = nalar_("samples", "a", "--step", "1")
    assert called.code == 0, called.err
    lines = called.out.splitlines()
    assert lines[0] == "step 1 of runs/a (kept: 1, 30)"
    assert "problem 0  say two  even" in called.out
    header = next(line for line in lines if "reward" in line)
    assert header.split()[:6] == ["reward", "well", "formed", "correct", "overlong", "tokens"]
    row = next(line for line in lines if "→ two" in line)
    assert [float(word) for word in row.split()[:4]] == [1.1, 0.1, 1.0, 0.0]
    assert "cut" in called.out and "[broken]" in called.out
    assert "not trained on: its rewards are equal" in called.out
    assert "\x1b" not in called.out


def test_the_document_has_every_group_and_the_screen_the_first_few(run, nalar_):
    called = nalar_("samples", "a", "--json")
    document = called.document
    assert (document["step"], document["steps"]) == (30, [1, 30])
    assert [group["problem"] for group in document["groups"]] == list(range(6))
    first = document["groups"][0]["samples"][0]
    assert (first["thought"], first["answer"], first["correct"]) == ("one", "two", True)
    assert first["parts"]["correct"] == 1.0 and first["reward"] == pytest.approx(1.1)
    shown = nalar_("samples", "a")
    assert "problem 3  " in shown.out and "problem 4  " not in shown.out
    assert "2 more: --problem 4, 5" in shown.out


def test_a_task_or_a_problem_can_be_chosen(run, nalar_):
    groups = nalar_("samples", "a", "--step", "1", "--task", "odd", "--json").document["groups"]
    assert [(group["task"], group["kept"]) for group in groups] == [("odd", False)]
    groups = nalar_("samples", "a", "--problem", "5", "--json").document["groups"]
    assert [group["prompt"] for group in groups] == ["say 5"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--step", "7"), "a step whose samples were kept: 1, 30"),
        (("--problem", "9"), "one of 0, 1, 2, 3, 4, 5"),
        (("--task", "evn"), "did you mean 'even'?"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(words, said, run, nalar_):
    called = nalar_("samples", "a", *words)
    assert called.code == 2 and said in called.err


def test_a_run_without_rollouts_and_a_broken_line_are_said(run, nalar_, tmp_path):
    path = run.path / ROLLOUTS / "step-000030.jsonl"
    path.write_text(path.read_text().replace('"reward":', '"prize":', 1))
    called = nalar_("samples", "a")
    assert called.code == 2 and "line 1" in called.err
    Run.create(tmp_path / "runs", "b", {"recipe": "rl", "model": "x"}, "nalar rl", 0)
    assert "no samples of RL" in nalar_("samples", "b").err


def test_half_a_surrogate_pair_in_a_file_is_escaped_in_the_document(run, nalar_):
    path = run.path / ROLLOUTS / "step-000030.jsonl"
    path.write_text(path.read_text().replace('"error": null', '"error": "\\ud800"', 1))
    called = nalar_("samples", "a", "--json")
    assert called.code == 0, called.err
    assert called.document["groups"][0]["samples"][0]["error"] == "\ud800"


def test_files_of_other_names_are_no_steps(run, nalar_):
    for name in ("step-last.jsonl", "step-.jsonl", "step--1.jsonl"):
        (run.path / ROLLOUTS / name).write_text("x")
    called = nalar_("samples", "a")
    assert called.code == 0 and "(kept: 1, 30)" in called.out


def test_a_run_that_was_killed_before_it_saved_shows_its_first_step(run, nalar_, tmp_path):
    (run.path / "model").unlink()
    called = nalar_("chat", "a", "--prompt", "x")
    assert called.code == 2 and f"--run {run.path.relative_to(tmp_path)} --resume" in called.err
    base = run.checkpoint_dir("rl-000030")
    config = {"recipe": "rl", "model": str(base), "rl": {"steps": 30, "tasks": ["chain_sum"]}}
    begun = Run.create(tmp_path / "runs", "b", config, "nalar rl", 0)
    (run.path / ROLLOUTS).rename(begun.path / ROLLOUTS)
    called = nalar_("samples", "b", "--step", "1")
    assert called.code == 0, called.err
    assert "problem 0  say two  even" in called.out
