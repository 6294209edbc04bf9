"""A whole run with a calculator, at its smallest."""

import json

import pytest

from nalar.config import ConfigError, UserError
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.evals.protocol import evaluate
from nalar.pipeline import vigil
from nalar.pipeline.config import RlRunConfig, ZeroConfig
from nalar.pipeline.rl import plan_rl, run_rl
from nalar.pipeline.state import Outcome
from nalar.pipeline.tools import environments
from nalar.recipes.tools import zero_tools_cpu
from nalar.rl.store import read_rows
from nalar.sandbox.config import ToolsConfig


@pytest.fixture(scope="module")
def small(shrunk):
    """Dialogues of one call each: what is asked of the calculator is learned in a few steps, how to copy is not."""
    config, recipe = shrunk.model_dump(), zero_tools_cpu().model_dump()
    config |= {"probe": None, "tools": recipe["tools"], "corpus": recipe["corpus"]}
    config["tokenizer"] |= {"tools": True, "vocab_size": 266}
    config["corpus"]["calls"] |= {"call_frac": 1.0, "echo_share": 0.0}
    config["corpus"]["calls"]["arithmetic"] |= {"min_digits": 1, "max_digits": 1}
    config["rl"]["alarms"] |= {"held_out_every_steps": 2, "held_out_problems": 4}
    for stage in ("rl", "evals"):
        config[stage] |= {"tasks": ("arithmetic,min_digits=1,max_digits=1",), "max_tokens": 48}
    return ZeroConfig.model_validate(config)


@pytest.fixture(scope="module")
def looks():
    """What the alarms of the run below drew of held-out problems."""
    return []


@pytest.fixture(scope="module")
def whole(make_work, make_recorder, small, looks, tmp_path_factory):
    """The run, and who watched it."""
    work, recorder = make_work(tmp_path_factory.mktemp("tools")), make_recorder()
    run = work.create("tools", small)

    def look(*args, **settings):
        looks.append(evaluate(*args, **settings))
        return looks[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vigil, "evaluate", look)
        assert work.go(run, observer=recorder) is Outcome.FINISHED
    return run, recorder


def test_calls_are_answered_in_rl_and_in_evaluations(whole):
    run, recorder = whole
    calls = [v["tools/calls"] for v in recorder.values if "tools/calls" in v]
    assert calls and max(calls) > 0
    for name in ("results_before.json", "results_after.json"):
        assert run.read_json(name)["arithmetic"]["tool_calls"] > 0
    rows = run.samples("evaluate_base")
    answered = [call for row in rows for call in row["calls"] if call["output"] is not None]
    assert answered and all(set(call) == {"name", "arguments", "output"} for call in answered)
    json.dumps(rows)


def test_calls_are_answered_where_alarms_look_at_held_out_problems(whole, looks):
    parsed = [s.parsed for measured in looks for group in measured.samples for s in group]
    assert any(call.output is not None for one in parsed for call in one.calls)


@pytest.mark.slow
def test_rl_from_a_model_that_knows_calls_answers_them_too(
    whole, small, make_recorder, make_work, tmp_path
):
    base = max((whole[0].path / "checkpoints").glob("pretrain-*"))
    settings = {name: getattr(small, name) for name in ("threads", "rl", "evals", "tools")}
    config = RlRunConfig(model=str(base), device="cpu", **settings)
    assert plan_rl(config).stages
    run = make_work(tmp_path).create("rl", config)
    assert run_rl(config, run, make_recorder(), lambda: False) is Outcome.FINISHED
    rows = [row for path in (run.path / "rollouts").iterdir() for row in read_rows(path)]
    given = [row for row in rows if not all(row.drawn)]
    assert given
    for row in given:
        pairs = zip(row.logprobs, row.drawn, strict=True)
        assert all((logprob < 0) == drawn for logprob, drawn in pairs)
    assert run.read_json("results_after.json")["arithmetic"]["tool_calls"] > 0


def test_what_does_not_go_together_is_refused(small):
    config = small.model_dump()
    for change in ({"tools": {}}, {"corpus": small.corpus.model_dump() | {"calls": None}}):
        config["tokenizer"]["tools"] = False
        with pytest.raises(ConfigError, match=r"tokenizer\.tools|corpus\.weights"):
            ZeroConfig.model_validate(config | change)
    plain = Tokenizer.train(["1+1"], TokenizerConfig(vocab_size=261))
    assert environments(ToolsConfig(), plain) is None
    with pytest.raises(UserError, match="without ids for calls"):
        environments(ToolsConfig(names=("calculator",)), plain)
