import pytest

from nalar.config import UserError
from nalar.pipeline.session import Session
from nalar.pipeline.state import FILE
from nalar.recipes.zero import zero_tiny
from nalar.run import Run


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"done": 5}', '{"logs": {"rl": 5}}', '{"lost": {"wall_s": "long"}}']
)
def test_a_broken_state_is_bad_input(text, tmp_path):
    config = zero_tiny()
    run = Run.create(tmp_path, "r", config.model_dump(mode="json"), "nalar demo", 0)
    (run.path / FILE).write_text(text)
    with pytest.raises(UserError):
        Session(config, run, observer=None, should_stop=lambda: False).is_done("rl")
