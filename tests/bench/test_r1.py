"""bench/r1.py without a model: what goes on when, what travels, how RL beside a pipeline is set up."""

import argparse
import time
from pathlib import Path

import pytest

import r1 as bench
from controls import r1_parts, r1_run, side_by_side
from controls.r1_parts import next_steps, plain_rl, provoked_rl, published_rl
from controls.r1_place import DONE, NEEDS, PIPELINE, REFUSED, Place
from controls.r1_results import Joined, One, joined
from controls.r1_state import spare
from nalar.config import UserError
from nalar.pipeline.r1_config import stage_config
from nalar.pipeline.state import Outcome, State
from nalar.recipes.r1 import r1_cpu
from nalar.run import Receipt, Run

# --- the runs beside a pipeline


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(Place, "model", lambda _self, name: Path("/models") / name)
    monkeypatch.setattr(
        Place,
        "settings",
        lambda self, stage: stage_config(self.config, stage, lambda n: f"/models/{n}"),
    )
    return Place("r1-cpu", 1, tmp_path)


def test_plain_rl_begins_with_the_student_and_spends_all_on_learning(place):
    config = plain_rl(place, 17)
    assert config.model == "/models/student" and config.rl.steps == 17
    assert config.rl.alarms.held_out_every_steps is None
    zero = r1_cpu().zero.rl
    assert (config.rl.tasks, config.rl.lr, config.rl.reward) == (zero.tasks, zero.lr, zero.reward)


def test_what_is_provoked_hears_of_no_truth(place):
    published, provoked = published_rl(place), provoked_rl(place)
    own = r1_cpu().rl2.rl
    assert published.rl.reward.model_rewards_last_steps == own.reward.model_rewards_last_steps
    assert published.rl.steps == own.steps and published.rl.alarms.held_out_every_steps == 8
    assert provoked.rl.tasks == ("general", "safety")
    assert provoked.rl.reward.model_rewards_last_steps is None
    assert all(provoked.rl.reward.models_count(step, provoked.rl.steps) for step in (0, 60))
    for weights in provoked.rl.reward.by_task.values():
        assert weights.correct == weights.well_formed == weights.language == 0
        assert weights.preference > 0
    assert provoked.rl.steps == 2 * own.steps
    assert provoked.rl.alarms == published.rl.alarms


def test_threads_and_seed_are_the_bench_s(place):
    assert (place.config.threads, place.config.device, place.config.seed) == (1, "cpu", 1)
    assert place.settings("zero").seed != Place("r1-cpu", 2, place.work).settings("zero").seed


@pytest.fixture
def rl_that_costs(place, monkeypatch):
    """Stands for RL whose step costs what is told; keeps the numbers of steps that it was asked for."""

    def make(step_flops, *, budget, guess, stops_at=None):
        asked = []

        def rl(_place, folder, config, _should_stop):
            path, steps = folder, config.rl.steps
            resume = (path / "run.json").exists()
            run = Run.create(
                path.parent, path.name, {"rl": {"steps": steps}}, "t", 0, resume=resume
            )
            asked.append(steps)
            if len(asked) == stops_at:
                return run, Outcome.STOPPED
            if not resume or run.stage_total("rl") is None:
                flops = steps * step_flops(steps)
                run.record(Receipt("rl", 1, flops, 1.0, 0.0, None, "2026-01-01T00:00:00+00:00"))
            return run, Outcome.FINISHED

        monkeypatch.setattr(r1_parts, "_rl", rl)
        monkeypatch.setattr(r1_parts, "counted_flops", lambda *_: {"all": budget})
        monkeypatch.setattr(r1_parts, "_likely_step_flops", lambda _place: guess)
        measured = []
        monkeypatch.setattr(
            r1_parts,
            "_measured",
            lambda _p, _part, run, _s: measured.append(run) or Outcome.FINISHED,
        )
        return asked, measured

    return make


def steps_measured(runs):
    (run,) = runs
    return run.info.config["rl"]["steps"]


def test_rl_is_run_again_until_its_flops_are_near(place, rl_that_costs):
    asked, measured = rl_that_costs(lambda _steps: 10.0, budget=1000.0, guess=20.0)
    assert r1_parts.equal_flops(place, lambda: False, part="rl_as_distil") is Outcome.FINISHED
    assert asked == [50, 100] and steps_measured(measured) == 100


def test_rl_whose_steps_become_cheaper_is_tried_along_a_line(place, rl_that_costs):
    asked, measured = rl_that_costs(lambda n: 10.0 - 0.02 * n, budget=1000.0, guess=20.0)
    r1_parts.equal_flops(place, lambda: False, part="rl_as_distil")
    assert asked == [50, 100, 129]  # 450, 800, 957 FLOPs: at most twice as many, then along a line
    assert steps_measured(measured) == 129


def test_rl_that_never_comes_near_ends_with_the_nearest(place, rl_that_costs):
    asked, measured = rl_that_costs(lambda n: 10.0 if n <= 60 else 30.0, budget=1000.0, guess=20.0)
    r1_parts.equal_flops(place, lambda: False, part="rl_as_distil")
    assert len(asked) == len(set(asked)) <= r1_parts.ATTEMPTS
    prices = {n: n * (10.0 if n <= 60 else 30.0) for n in asked}
    assert steps_measured(measured) == min(asked, key=lambda n: abs(prices[n] - 1000))


def test_the_next_number_of_steps_is_bounded():
    assert next_steps(1000.0, {10: 10.0}) == 20
    assert next_steps(1.0, {10: 100.0}) == 1
    assert (
        next_steps(1000.0, {10: 800.0, 20: 700.0}) == 12
    )  # dearer by fewer: in proportion to the nearest


def test_a_step_that_is_too_large_is_taken_once(place, rl_that_costs):
    asked, measured = rl_that_costs(lambda _steps: 700.0, budget=1000.0, guess=700.0)
    r1_parts.equal_flops(place, lambda: False, part="rl_as_distil")
    assert asked == [1] and steps_measured(measured) == 1


def test_rl_that_is_stopped_goes_on_with_the_same_steps(place, rl_that_costs):
    costs = {"budget": 1000.0, "guess": 20.0}
    rl_that_costs(lambda _steps: 10.0, stops_at=2, **costs)
    assert r1_parts.equal_flops(place, lambda: False, part="rl_as_distil") is Outcome.STOPPED
    asked, measured = rl_that_costs(lambda _steps: 10.0, **costs)
    assert r1_parts.equal_flops(place, lambda: False, part="rl_as_distil") is Outcome.FINISHED
    assert asked == [50, 100] and steps_measured(measured) == 100


def test_a_missing_plot_library_is_no_failure(place, monkeypatch):
    def without(name):
        def run_r1(*_, **__):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return run_r1

    monkeypatch.setattr(r1_parts, "run_r1", without("matplotlib"))
    assert r1_parts.pipeline(place, lambda: False) is Outcome.FINISHED
    monkeypatch.setattr(r1_parts, "run_r1", without("numpy"))
    with pytest.raises(ModuleNotFoundError):
        r1_parts.pipeline(place, lambda: False)


# --- what goes on when


def stage_done(place, stage):
    """As the pipeline leaves it."""
    root = place.folder(PIPELINE)
    if not (root / "run.json").exists():
        Run.create(root.parent, root.name, place.config.model_dump(mode="json"), "t", place.seed)
    last = {"pretrain": "pretrain", "student": "pretrain", "sft": "held_out_after"}
    last |= {"distil": "held_out_after", "rejection_sampling": "collect"}
    kind = last.get(stage, "reward_test" if stage.endswith("_model") else "rl")
    run = Run.create(root / "stages", stage, {}, "t", 0)
    State(done=[kind]).write(run)


def test_a_part_waits_for_the_stages_that_it_needs(tmp_path):
    place = Place("r1-tiny", 0, tmp_path)
    assert place.is_ready(PIPELINE) and place.is_ready("baselines")
    assert not place.is_ready("provoked")
    for stage in ("pretrain", "sft", "preference_model", "safety_model"):
        assert not place.is_ready("provoked")
        stage_done(place, stage)
    assert place.is_ready("provoked") and not place.is_ready("rl_as_distil")


def test_needs_are_stages_of_the_recipe():
    for stages in NEEDS.values():
        assert set(stages) <= set(r1_cpu().stages)
    assert set(NEEDS) == set(r1_parts.PARTS)


def test_what_is_settled_is_not_done_again_and_a_pipeline_stays_while_others_need_it(tmp_path):
    places = [Place("r1-tiny", seed, tmp_path) for seed in (0, 1)]
    for place in places:
        for part in NEEDS:
            place.folder(part).mkdir()
            if part != "provoked" or place.seed:
                (place.folder(part) / DONE).write_text("")
    found = joined(Joined(), [])
    for place in places:
        done = [part for part in NEEDS if (place.folder(part) / DONE).exists()]
        found.seeds[place.name] = One(recipe="r1-tiny", seed=place.seed, command="t", done=done)
    assert [job.name for job in bench.left(found, places)] == ["r1-tiny-seed0-provoked"]
    names = [job.name for job in bench.needed(found, places)]
    assert names == ["r1-tiny-seed0", "r1-tiny-seed0-provoked"]
    assert found.seeds["r1-tiny-seed1"].is_whole and not found.seeds["r1-tiny-seed0"].is_whole


def test_pipelines_come_first(tmp_path):
    places = [Place("r1-tiny", seed, tmp_path) for seed in (0, 1)]
    parts = [job.part for job in bench.left(Joined(), places)]
    assert parts[:2] == [PIPELINE, PIPELINE] and len(parts) == 2 * len(NEEDS)


def test_a_recipe_without_a_stage_that_is_needed_is_refused():
    with pytest.raises(UserError, match="preference_model"):
        bench.refuse_partial(Place("r1-from-hf", 0, Path("nowhere")))
    bench.refuse_partial(Place("r1-tiny", 0, Path("nowhere")))


def test_a_part_that_cannot_be_done_says_why_and_is_settled(tmp_path, monkeypatch):
    def refuse(*_):
        raise UserError(at="stage rl2", got="nothing", want="a model")

    monkeypatch.setitem(r1_run.PARTS, "provoked", refuse)
    assert r1_run.main(["r1-tiny", "0", str(tmp_path), "provoked", "0"]) == 2
    place = Place("r1-tiny", 0, tmp_path)
    assert "a model" in (place.folder("provoked") / REFUSED).read_text()
    found = joined(Joined(), [place])
    assert found.settled(place.name) == ["provoked"]


def test_a_part_that_was_stopped_is_not_done(tmp_path, monkeypatch):
    place = Place("r1-tiny", 0, tmp_path)
    place.folder("provoked").mkdir()
    monkeypatch.setitem(
        r1_run.PARTS, "provoked", lambda _p, stop: Outcome.STOPPED if stop() else Outcome.FINISHED
    )
    assert r1_run.go_on(place, "provoked", time.monotonic() - 1) is Outcome.STOPPED
    assert not (place.folder("provoked") / DONE).exists()
    assert r1_run.go_on(place, "provoked", time.monotonic() + 60) is Outcome.FINISHED
    assert (place.folder("provoked") / DONE).exists()


class FakeProcess:
    """Ends after so many looks; None: never by itself."""

    def __init__(self, looks):
        self._looks, self.returncode, self.was_killed = looks, None, False

    def poll(self):
        if self._looks is not None:
            self._looks -= 1
            self.returncode = 0 if self._looks <= 0 else None
        return self.returncode

    def kill(self):
        self.was_killed = True

    def wait(self):
        return -9


class Job(argparse.Namespace):
    pass


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(side_by_side, "_LOOK_S", 0.0)


def test_a_job_that_is_not_ready_lets_others_go_first(at_once):
    started, made = [], set()

    def start(job, _rest):
        started.append(job.name)
        made.add(job.name)
        return FakeProcess(3)

    jobs = [
        Job(name="late", needs="early"),
        Job(name="early", needs=None),
        Job(name="never", needs="x"),
    ]
    side_by_side.work_on(
        jobs,
        start,
        workers=2,
        until=time.monotonic() + 1000,
        is_ready=lambda job: job.needs is None or job.needs in made,
    )
    assert started == ["early", "late"]  # and it ends, though one job waits for what nobody makes


def test_no_more_at_a_time_than_workers_and_none_when_time_is_short(at_once):
    most, going = [], []

    def start(job, _rest):
        going.append(FakeProcess(4))
        most.append(sum(p.returncode is None for p in going))
        return going[-1]

    jobs = [Job(name=str(i)) for i in range(5)]
    side_by_side.work_on(jobs, start, workers=2, until=time.monotonic() + 1000)
    assert len(going) == 5 and max(most) == 2
    side_by_side.work_on(jobs, start, workers=2, until=time.monotonic() + side_by_side.LEAST_S - 1)
    assert len(going) == 5


def test_who_oversleeps_is_killed(at_once, capsys):
    process = FakeProcess(None)
    until = time.monotonic() + 1000
    clock = iter([until - 500.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            side_by_side.time, "monotonic", lambda: next(clock, until + side_by_side.GRACE_S + 1)
        )
        side_by_side.work_on([Job(name="deep")], lambda *_: process, workers=1, until=until)
    assert process.was_killed and "deep: killed" in capsys.readouterr().out


def test_what_travels(tmp_path):
    place = Place("r1-tiny", 0, tmp_path)
    stage_done(place, "zero")
    zero = place.stage("zero")
    (zero.path / "rollouts").mkdir()
    for name in ("rl-000001", "rl-000002"):
        (zero.path / "checkpoints" / name / "state").mkdir(parents=True)
    root = f"{place.name}/stages/zero"
    pages = {f"{place.name}/report.html", f"{place.name}/r1.json"}
    under_way = {f"{root}/rollouts", f"{root}/checkpoints/rl-000001"}
    assert spare(place.folder(PIPELINE)) == pages | under_way
    State(done=["rl"], checkpoints={"rl": "rl-000002"}).write(zero)
    done = under_way | {f"{root}/checkpoints/rl-000002/state"}
    assert spare(place.folder(PIPELINE)) == pages | done
