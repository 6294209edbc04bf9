import pytest

from nalar.config import UserError
from nalar.pipeline.session import STATE_FILE, Session
from nalar.recipes.zero import zero_tiny
from nalar.run import Run


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"done": 5}', '{"checkpoints": {"rl": 5}}', '{"checkpoints": "../x"}']
)
def test_a_broken_state_is_bad_input(text, tmp_path):
    config = zero_tiny()
    run = Run.create(tmp_path, "r", config.model_dump(mode="json"), "nalar demo", 0)
    (run.path / STATE_FILE).write_text(text)
    with pytest.raises(UserError):
        Session(config, run, observer=None, should_stop=lambda: False).is_done("rl")


def test_a_checkpoint_outside_the_run_is_never_loaded(tmp_path):
    config = zero_tiny()
    run = Run.create(tmp_path, "r", config.model_dump(mode="json"), "nalar demo", 0)
    (run.path / STATE_FILE).write_text('{"checkpoints": {"rl": "../../elsewhere"}}')
    with pytest.raises(UserError, match="checkpoint name"):
        Session(config, run, observer=None, should_stop=lambda: False).load("rl")
