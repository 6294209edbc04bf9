"""TensorBoard's own reader finds what metrics.jsonl has."""

import math

import pytest

from nalar.config import UserError
from nalar.pipeline import preflight
from nalar.pipeline.tensorboard import FOLDER, TensorBoard, watched
from nalar.run import Run

pytest.importorskip("tensorboard", reason="nalar[tensorboard] is not installed")


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def test_values_go_to_a_folder_of_their_stage_and_on_to_the_observer(tmp_path, recorder):
    board = TensorBoard(tmp_path, recorder)
    board.stage_started("pretrain", steps=2)
    board.step("pretrain", 1, {"loss": 2.0, "load_frac/0": 1.5})
    board.step("pretrain", 2, {"loss": math.nan, "load_frac/0": 1.25})
    board.stage_finished("pretrain")
    board.stage_started("rl", steps=1)
    board.step("rl", 1, {"reward": 0.5})
    board.note("a word")
    board.close()
    found = scalars(tmp_path / "pretrain")
    assert found["load_frac/0"] == [(1, 1.5), (2, 1.25)]
    assert found["loss"][0] == (1, 2.0) and math.isnan(found["loss"][1][1])
    assert scalars(tmp_path / "rl") == {"reward": [(1, 0.5)]}
    assert recorder.steps == [("pretrain", 1), ("pretrain", 2), ("rl", 1)]
    assert (recorder.notes, recorder.finished) == (["a word"], ["pretrain"])


def test_a_stage_that_goes_back_drops_what_was_written_beyond(tmp_path, recorder):
    board = TensorBoard(tmp_path, recorder)
    board.stage_started("rl", steps=9)
    for step in (1, 2, 3, 4):
        board.step("rl", step, {"reward": 0.0})
    board.close()  # a kill: the checkpoint was that of step 2
    again = TensorBoard(tmp_path, recorder)
    again.stage_started("rl", steps=9, done=2)
    again.step("rl", 3, {"reward": 1.0})
    again.close()
    assert scalars(tmp_path / "rl")["reward"] == [(1, 0.0), (2, 0.0), (3, 1.0)]


def test_a_run_that_asks_for_them_writes_what_its_metrics_say(work, shrunk):
    run = work.create("board", shrunk.model_copy(update={"tensorboard": True}))
    work.go(run, until="pretrain", force=True)
    logged = [(m.step, pytest.approx(m.values["loss"])) for m in run.metrics("pretrain")]
    assert scalars(run.path / FOLDER / "pretrain")["loss"] == logged
    assert len(logged) > 3


def test_without_the_package_a_run_is_refused_before_it_writes(
    tmp_path, shrunk, recorder, monkeypatch
):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    config = shrunk.model_copy(update={"tensorboard": True})
    run = Run.create(tmp_path, "r", config.model_dump(mode="json"), "nalar demo", 0)
    with pytest.raises(UserError, match=r"nalar\[tensorboard\]"), watched(config, run, recorder):
        pass
    assert not (run.path / FOLDER).exists()
    with watched(shrunk, run, recorder) as observer:
        assert observer is recorder
