"""How `nalar eval` asks: the run's own settings, with what the flags say in their place."""

import pytest

from nalar.cli.eval import Eval, _config
from nalar.config import ConfigError, UserError
from nalar.evals.config import EvalConfig

OWN = EvalConfig(tasks=("countdown",), thinking_budget=64)


def test_thinking_is_the_runs_own_unless_it_is_said():
    assert _config(Eval(run="r"), OWN) == OWN
    off = _config(Eval(run="r", thinking="off"), OWN)
    assert (off.thinking, off.thinking_budget) == ("off", None)  # no budget without a thought
    less = _config(Eval(run="r", thinking_budget=8), OWN)
    assert (less.thinking, less.thinking_budget) == ("on", 8)
    on = _config(Eval(run="r", thinking="on"), EvalConfig(thinking="off"))
    assert (on.thinking, on.thinking_budget) == ("on", None)


def test_a_budget_that_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"--thinking-budget: got -1"):
        _config(Eval(run="r", thinking_budget=-1), OWN)
    with pytest.raises(ConfigError, match=r"evals\.thinking_budget: got 8 with"):
        _config(Eval(run="r", thinking="off", thinking_budget=8), OWN)
