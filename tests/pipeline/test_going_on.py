"""What a run does when it goes on: from which checkpoint, with which logs, and what it says about it."""

import random
import resource
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nalar.config import UserError
from nalar.pipeline import session as session_module
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.session import LostEndError, Session
from nalar.pipeline.writer import Writer
from nalar.pipeline.zero import Outcome
from nalar.train import checkpoint as checkpoint_module
from nalar.train import step as step_module
from nalar.train.checkpoint import MANIFEST, read_progress

pytestmark = pytest.mark.few(1)

STEPS = 20  # of the one slice that the probe lets pass


@pytest.fixture(scope="module")
def config(shrunk: ZeroConfig) -> ZeroConfig:
    """Saves within the slice and within RL."""
    document = shrunk.model_dump()
    document["pretrain"] |= {"save_every_steps": 6, "log_every_steps": 1}
    document["rl"] |= {"steps": 3, "save_every_steps": 1}
    return ZeroConfig.model_validate(document)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory, make_work):
    work = make_work(tmp_path_factory.mktemp("whole"))
    run = work.create("run", config)
    assert work.go(run, until="rl") is Outcome.FINISHED
    return run


class Interrupt:
    """A second Ctrl-C when a step is reported."""

    def __init__(self, recorder, stage, step):
        self.seen, self.at = recorder.step, (stage, step)
        recorder.step = self

    def __call__(self, stage, step, values):
        self.seen(stage, step, values)
        if (stage, step) == self.at:
            raise KeyboardInterrupt


def cut(work, recorder, config, stage, step):
    """A run that was interrupted there."""
    run = work.create("cut", config)
    Interrupt(recorder, stage, step)
    with pytest.raises(KeyboardInterrupt):
        work.go(run, observer=recorder)
    return run


def names(run):
    return sorted(path.name for path in (run.path / "checkpoints").iterdir())


def weights(run, name):
    return load_file(run.path / "checkpoints" / name / "model.safetensors")


STAGES = ("pretrain", "evaluate_base", "rl")


def assert_ends_alike(work, run, whole, until="rl", *, ledger=True):
    """Weights, metrics and ledger of the stages up to this one."""
    stages = STAGES[: STAGES.index(until) + 1]
    last = "rl-000003" if until == "rl" else "pretrain-000020"
    a, b = weights(run, last), weights(whole, last)
    assert all(torch.equal(a[key], b[key]) for key in b)
    for stage in stages:
        assert work.timeless(run, stage) == work.timeless(whole, stage)
    ledgers = [[(r.name, r.tokens, r.flops) for r in r.ledger()] for r in (run, whole)]
    assert not ledger or ledgers[0] == [line for line in ledgers[1] if line[0] in stages]


def spoil(run, name):
    """Flip one bit of the weights."""
    path = run.path / "checkpoints" / name / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_saves_come_when_they_should_and_the_last_two_and_the_ends_of_slices_stay(whole):
    assert names(whole) == ["pretrain-000018", "pretrain-000020", "rl-000002", "rl-000003"]
    assert read_progress(whole.path / "checkpoints" / "pretrain-000020").is_kept
    assert not read_progress(whole.path / "checkpoints" / "pretrain-000018").is_kept
    assert [r.name for r in whole.ledger()].count("pretrain") == 5  # 6, 12, 18, 20 and the probe


@pytest.mark.parametrize(
    ("keep", "keep_slices", "left"),
    [(1, True, [12, 24]), (3, False, [18, 19, 24])],
)
def test_as_many_checkpoints_stay_as_the_config_says(keep, keep_slices, left, config, work):
    """Over two slices of 12 steps; there is one each 6 steps and, by a stop, one at 19."""
    document = config.model_dump()
    document["pretrain"] |= {"slice_tokens": 12 * 8 * 48}
    document["probe"] |= {"min_hits": 10_000}
    document["checkpoint"] |= {"keep": keep, "keep_slices": keep_slices}
    run = work.create("a", ZeroConfig.model_validate(document))
    asked = iter([False] * 20 + [True] * 2)
    assert work.go(run, should_stop=lambda: next(asked)) is Outcome.STOPPED
    assert work.go(run) is Outcome.PROBE_FAILED
    assert names(run) == [f"pretrain-{step:06d}" for step in left]


@pytest.mark.slow
def test_saving_in_the_foreground_gives_the_same_run(config, whole, work, monkeypatch):
    keeping = config.checkpoint.model_copy(update={"background": False})
    run = work.create("a", config.model_copy(update={"checkpoint": keeping}))
    start, started = threading.Thread.start, []

    def noted(thread):
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    assert work.go(run, until="rl") is Outcome.FINISHED
    assert {name.split("_")[0] for name in started} == {"verifier"}
    assert_ends_alike(work, run, whole)


@pytest.mark.parametrize(
    ("stage", "step", "newest", "before"),
    [("pretrain", 14, "pretrain-000012", "pretrain-000006"), ("rl", 3, "rl-000002", "rl-000001")],
)
def test_a_damaged_checkpoint_is_named_set_aside_and_done_without(
    stage, step, newest, before, config, whole, work, recorder, make_recorder
):
    run = cut(work, recorder, config, stage, step)
    spoil(run, newest)
    again = make_recorder()
    assert work.go(run, until=stage, observer=again) is Outcome.FINISHED
    (note,) = [note for note in again.notes if "damaged" in note]
    for words in (newest, "model.safetensors is not what was written", f"before, {before}"):
        assert words in note
    assert again.started[0][::2] == (stage, int(before[-6:]))
    assert f"{newest}.damaged" in names(run)
    assert_ends_alike(work, run, whole, stage)


def test_a_stage_whose_end_is_damaged_goes_back_to_the_checkpoint_before(
    config, whole, work, recorder, make_recorder
):
    """Pretraining was done; the evaluation after it finds its last checkpoint spoilt."""
    run = cut(work, recorder, config, "evaluate_base", 1)
    spoil(run, "pretrain-000020")
    again = make_recorder()
    assert work.go(run, until="evaluate_base", observer=again) is Outcome.FINISHED
    assert "pretrain goes back" in again.notes[0]
    assert again.started[0][::2] == ("pretrain", 18)
    assert_ends_alike(work, run, whole, "evaluate_base")


@pytest.mark.parametrize(("lost", "first"), [("pretrain-000020", 18), ("", 0)])
def test_a_stage_that_lost_its_end_or_all_its_checkpoints_does_them_again(
    lost, first, config, whole, work, recorder, make_recorder
):
    run = cut(work, recorder, config, "evaluate_base", 1)
    shutil.rmtree(run.path / "checkpoints" / lost)
    again = make_recorder()
    assert work.go(run, until="evaluate_base", observer=again) is Outcome.FINISHED
    assert again.started[0][::2] == ("pretrain", first)
    assert_ends_alike(work, run, whole, "evaluate_base")


def test_where_every_checkpoint_is_damaged_the_run_stops_and_loses_nothing(
    config, work, recorder, make_recorder
):
    run = cut(work, recorder, config, "pretrain", 14)
    for name in names(run):
        (run.path / "checkpoints" / name / MANIFEST).unlink()
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"pretrain-000012: got a damaged .*\(and 1 before it\)"):
        work.go(run, observer=make_recorder())
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


def test_a_reader_of_a_run_is_told_of_damage_and_changes_nothing(config, whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole.path, folder, symlinks=True)
    run = type(whole).open(folder)
    spoil(run, "rl-000003")
    session = Session(config, run, observer=None, should_stop=lambda: False)
    with pytest.raises(LostEndError, match="rl-000003: got a damaged checkpoint"):
        session.load("rl")
    assert names(run) == names(whole)
    assert session.load("pretrain").progress.step == STEPS


def test_the_end_of_a_stage_is_looked_for_within_the_run_alone(whole, config, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole.path, folder, symlinks=True)
    shutil.copytree(folder / "checkpoints" / "pretrain-000020", tmp_path / "elsewhere")
    run = type(whole).open(folder)
    state = run.read_json("state.json")
    state["checkpoints"]["pretrain"] = "../../elsewhere"
    run.write_json("state.json", state)
    session = Session(config, run, observer=None, should_stop=lambda: False)
    with pytest.raises(LostEndError, match="no such folder"):
        session.load("pretrain")


@pytest.mark.parametrize("at", [("pretrain", 3), ("pretrain", 14), ("rl", 2)])
def test_logs_go_back_with_the_weights_and_time_lost_is_still_paid(
    at, config, whole, work, recorder
):
    run = cut(work, recorder, config, *at)
    reached = run.metrics(at[0])[-1].values["wall_s"]
    assert work.go(run, until=at[0]) is Outcome.FINISHED
    lines, others = ((r.path / "metrics.jsonl").read_text().splitlines() for r in (run, whole))
    assert len(lines) == len(others[: len(lines)]) and at[0] in lines[-1]
    assert_ends_alike(work, run, whole, at[0])
    total = run.stage_total(at[0])
    assert total.wall_s > reached
    assert total.usd == pytest.approx(config.price.usd(total.wall_s))


@pytest.mark.slow
def test_time_lost_twice_in_one_place_is_paid_twice(config, work, recorder, make_recorder):
    """The second session is cut off before its first receipt; and a third one before its first step."""
    run = cut(work, recorder, config, "pretrain", 5)
    walls = [run.metrics("pretrain")[-1].values["wall_s"]]
    for step in (4, 1):
        again = make_recorder()
        Interrupt(again, "pretrain", step)
        with pytest.raises(KeyboardInterrupt):
            work.go(run, observer=again)
        assert run.metrics("pretrain")[-1].step == step
        walls.append(run.metrics("pretrain")[-1].values["wall_s"])
    assert walls == sorted(walls)

    class Gone(type(recorder)):
        def stage_started(self, *_, **__):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.go(run, observer=Gone())
    assert run.metrics("pretrain") == []
    assert work.go(run, until="pretrain") is Outcome.FINISHED
    assert run.metrics("pretrain")[0].values["wall_s"] > walls[-1]


def test_a_log_that_was_changed_by_hand_is_named(config, work, recorder, make_recorder):
    run = cut(work, recorder, config, "pretrain", 14)
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step": 1,', b'"step": 100,'))
    with pytest.raises(UserError, match=r"metrics\.jsonl, byte \d+: got the middle of a line"):
        work.go(run, observer=make_recorder())
    path.write_bytes(b"")
    again = make_recorder()
    assert work.go(run, until="pretrain", observer=again) is Outcome.FINISHED
    assert any("metrics.jsonl: lines are missing" in note for note in again.notes)


class Drawing:
    """An observer that draws from every global generator when a step is reported, as a library might."""

    def __init__(self, recorder):
        self.seen, self.drawn = recorder.step, {}
        recorder.step = self

    def __call__(self, stage, step, values):
        self.drawn[stage, step] = [random.random(), np.random.normal(), torch.rand(1).item()]
        self.seen(stage, step, values)


@pytest.fixture(scope="module")
def drawn(config, make_work, make_recorder, tmp_path_factory):
    """By a run that nobody interrupted."""
    recorder, work = make_recorder(), make_work(tmp_path_factory.mktemp("drawn"))
    drawing = Drawing(recorder)
    assert work.go(work.create("a", config), until="rl", observer=recorder) is Outcome.FINISHED
    return drawing.drawn


@pytest.mark.parametrize("at", [("pretrain", 14), ("evaluate_base", 1), ("rl", 3)])
def test_whoever_draws_from_global_generators_goes_on_with_the_same_numbers(
    at, config, drawn, work, recorder, make_recorder
):
    again = make_recorder()
    before, after = Drawing(recorder), Drawing(again)
    run = cut(work, recorder, config, *at)
    assert work.go(run, until=at[0], observer=again) is Outcome.FINISHED
    both = before.drawn | after.drawn
    assert both == {key: drawn[key] for key in both}
    assert any(key in after.drawn for key in before.drawn), "nothing was done twice"


def test_bad_gradients_in_a_row_are_counted_across_a_resume(config, work, monkeypatch):
    plain = step_module.token_logprobs

    def poisoned(*args, **kwargs):
        logprobs_N, entropy_N = plain(*args, **kwargs)
        return logprobs_N * float("nan"), entropy_N

    monkeypatch.setattr(step_module, "token_logprobs", poisoned)
    run = work.create("a", config)
    asked = iter([False] * 7 + [True] * 100)
    assert work.go(run, should_stop=lambda: next(asked)) is Outcome.STOPPED
    with pytest.raises(UserError, match="step 10: got 10 steps in a row dropped"):
        work.go(run)


def test_a_disk_that_fills_up_behind_the_loop_ends_the_run_as_bad_input(
    config, whole, work, recorder, make_recorder
):
    run = work.create("a", config)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen = recorder.step

    def fill(stage, step, values):
        seen(stage, step, values)
        if step == 8:
            while "pretrain-000006" not in names(run):  # it is written behind the loop
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    recorder.step = fill
    try:
        with pytest.raises(UserError, match=r"pretrain-000012: got a full disk"):
            work.go(run, observer=recorder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(run) == ["pretrain-000006"]
    assert (run.path / "model").readlink() == Path("checkpoints/pretrain-000006")
    assert work.go(run, until="pretrain", observer=make_recorder()) is Outcome.FINISHED
    assert_ends_alike(work, run, whole, "pretrain")


def test_a_failed_save_ends_the_run_at_the_next_step_that_is_logged(
    config, work, recorder, monkeypatch
):
    class Prompt(Writer):
        """So fast that a job is over when the loop goes on."""

        def do(self, job):
            super().do(job)
            self._thread.join()

    def broken(*_args, **_kwargs):
        raise UserError(at="here", got="a full disk", want="room")

    monkeypatch.setattr(session_module, "Writer", Prompt)
    monkeypatch.setattr(checkpoint_module, "save_model", broken)
    with pytest.raises(UserError, match="here: got a full disk"):
        work.go(work.create("a", config), observer=recorder)
    assert recorder.steps[-1] == ("pretrain", 6)


@pytest.mark.parametrize("how", ["interrupt", "stop", "end"])
def test_nothing_ends_before_what_is_being_written_is_written(
    how, config, whole, work, recorder, monkeypatch
):
    slow, plain = threading.Event(), session_module.save_checkpoint
    threads = threading.active_count()

    def save(folder, *args, **kwargs):
        slow.wait(0.3)  # longer than all steps take
        plain(folder, *args, **kwargs)

    monkeypatch.setattr(session_module, "save_checkpoint", save)
    run = work.create("a", config)
    if how == "interrupt":
        Interrupt(recorder, "pretrain", 7)
        with pytest.raises(KeyboardInterrupt):
            work.go(run, observer=recorder)
        assert names(run) == ["pretrain-000006"]
        assert recorder.notes[-1] == "the checkpoint that is being written is finished first"
    elif how == "stop":
        stop = iter([False] * 7 + [True] * 100)
        assert work.go(run, should_stop=lambda: next(stop)) is Outcome.STOPPED
        assert names(run)[-1] == "pretrain-000007"
    else:
        assert work.go(run, until="pretrain") is Outcome.FINISHED
        assert names(run)[-1] == "pretrain-000020"
    assert threading.active_count() == threads
    assert run.model_dir().resolve().name == names(run)[-1]
    monkeypatch.undo()
    assert work.go(run, until="pretrain") is Outcome.FINISHED
    assert_ends_alike(work, run, whole, "pretrain", ledger=how != "stop")  # a stop saves once more


def test_a_failed_save_is_told_also_where_something_else_ends_the_run(
    config, work, recorder, monkeypatch
):
    interrupted = threading.Event()

    def broken(*_args, **_kwargs):
        interrupted.wait(5)
        raise OSError("the cable was pulled")

    monkeypatch.setattr(checkpoint_module, "save_model", broken)
    Interrupt(recorder, "pretrain", 7)
    note = recorder.note

    def heard(text):
        if "finished first" in text:
            interrupted.set()
        note(text)

    recorder.note = heard
    with pytest.raises(KeyboardInterrupt):
        work.go(work.create("a", config), observer=recorder)
    assert recorder.notes[-1] == "the last checkpoint was not written: the cable was pulled"


def test_a_run_that_stops_where_it_began_saves_nothing_new(config, work, recorder):
    run = cut(work, recorder, config, "rl", 3)
    before = {p: p.stat().st_mtime_ns for p in (run.path / "checkpoints").rglob("*")}
    assert work.go(run, should_stop=lambda: True) is Outcome.STOPPED
    assert {p: p.stat().st_mtime_ns for p in (run.path / "checkpoints").rglob("*")} == before
