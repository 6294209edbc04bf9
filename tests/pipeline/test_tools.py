"""A whole run with a calculator, at its smallest."""

import json

import pytest

from nalar.config import ConfigError, UserError
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.state import Outcome
from nalar.pipeline.tools import environments
from nalar.recipes.tools import zero_tools_cpu
from nalar.sandbox.config import ToolsConfig


@pytest.fixture
def small(shrunk):
    """Dialogues of one call each: what is asked of the calculator is learned in a few steps, how to copy is not."""
    config, recipe = shrunk.model_dump(), zero_tools_cpu().model_dump()
    config |= {"probe": None, "tools": recipe["tools"], "corpus": recipe["corpus"]}
    config["tokenizer"] |= {"tools": True, "vocab_size": 266}
    config["corpus"]["calls"] |= {"call_frac": 1.0, "echo_share": 0.0}
    config["corpus"]["calls"]["arithmetic"] |= {"min_digits": 1, "max_digits": 1}
    for stage in ("rl", "evals"):
        config[stage] |= {"tasks": ("arithmetic,min_digits=1,max_digits=1",), "max_tokens": 48}
    return ZeroConfig.model_validate(config)


def test_calls_are_answered_in_rl_and_in_evaluations(work, small, recorder):
    run = work.create("tools", small)
    assert work.go(run, observer=recorder) is Outcome.FINISHED
    calls = [v["tools/calls"] for v in recorder.values if "tools/calls" in v]
    assert calls and max(calls) > 0
    for name in ("results_before.json", "results_after.json"):
        assert run.read_json(name)["arithmetic"]["tool_calls"] > 0
    rows = run.samples("evaluate_base")
    answered = [call for row in rows for call in row["calls"] if call["output"] is not None]
    assert answered and all(set(call) == {"name", "arguments", "output"} for call in answered)
    json.dumps(rows)


def test_what_does_not_go_together_is_refused(small):
    config = small.model_dump()
    for change in ({"tools": None}, {"corpus": small.corpus.model_dump() | {"calls": None}}):
        config["tokenizer"]["tools"] = False
        with pytest.raises(ConfigError, match=r"tokenizer\.tools|corpus\.weights"):
            ZeroConfig.model_validate(config | change)
    plain = Tokenizer.train(["1+1"], TokenizerConfig(vocab_size=261))
    assert environments(None, plain) is None
    with pytest.raises(UserError, match="without ids for calls"):
        environments(ToolsConfig(), plain)
