import types

import pytest
import torch

from nalar.config import UserError
from nalar.kernels.ceiling import Ceiling
from nalar.pipeline.session import Session
from nalar.pipeline.state import FILE
from nalar.recipes.zero import zero_tiny
from nalar.run import Run, Spent


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"done": 5}',
        '{"checkpoints": {"rl": 5}}',
        '{"checkpoints": "../x"}',
        '{"logs": {"rl": 5}}',
        '{"lost": {"wall_s": "long"}}',
    ],
)
def test_a_broken_state_is_bad_input(text, tmp_path):
    config = zero_tiny()
    run = Run.create(tmp_path, "r", config.model_dump(mode="json"), "nalar demo", 0)
    (run.path / FILE).write_text(text)
    with pytest.raises(UserError):
        Session(config, run, observer=None, should_stop=lambda: False).is_done("rl")


def test_the_use_of_the_machine_is_that_since_the_line_before(tmp_path, recorder):
    config = zero_tiny()
    run = Run.create(tmp_path, "r", config.model_dump(mode="json"), "nalar demo", 0)
    session = Session(config, run, recorder, should_stop=lambda: False)
    session.start("rl", steps=4)

    def line(step, seconds):
        spent = Spent("2026-01-01T00:00:00+00:00", seconds, None)
        session.log("rl", step, types.SimpleNamespace(total=spent), {})
        return recorder.values[-1].get("mfu_frac")

    assert line(1, 10.0) is None  # nobody has measured a ceiling
    session.ceiling = Ceiling(flops_per_s=100.0, side=8, dtype=torch.float32)
    session.work.flops = 500.0
    assert line(2, 20.0) == pytest.approx(0.5)
    session.recorded_flops, session.work.flops = 700.0, 100.0
    assert line(3, 24.0) == pytest.approx(0.75)
    session.start("evaluate_final", steps=1)
    assert line(1, 1.0) is None  # of this stage there is no line before
