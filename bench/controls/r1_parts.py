"""The parts of bench/r1.py that take time, each resumable: the pipeline, and the runs of RL that are set beside it.

Runs beside it begin with a model of the pipeline and are measured on the problems that its models are measured on.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from controls.equal_flops import whole_steps
from controls.finished import say
from controls.r1_place import PIPELINE, Place
from nalar.disk import encode, write_atomic
from nalar.evals.baselines import TRAIN_PROBLEMS, best_constant, blind_guess
from nalar.model.weights import read_config
from nalar.pipeline.config import RlRunConfig
from nalar.pipeline.r1 import run_r1
from nalar.pipeline.r1_measure import BASE, measure
from nalar.pipeline.rl import run_rl
from nalar.pipeline.state import Outcome
from nalar.pipeline.tasks import EVAL_SEED
from nalar.pipeline.training import run_stages
from nalar.plan.model import flops_per_token
from nalar.plan.r1_stages import MEASURE
from nalar.run import Run
from nalar.tasks.registry import open_task

TOLERANCE_FRAC = 0.05
"""By which the FLOPs of RL may miss their budget, if a whole number of steps comes no nearer."""
ATTEMPTS = 4
"""Runs of RL to come so near: what a step costs is known when it is over, and the schedule wants it before."""
CONTEXT = 64
"""Tokens that a token attends to, about, where two models' costs are compared."""
PRESSURE = 2
"""Steps of the run that is to be gamed, as a multiple of the pipeline's: what fools a model takes time to find."""
LOOKS = 12
"""At held-out problems, and rollouts that are kept, over the steps of the pipeline's own."""
BASELINES, MEASURED = "baselines.json", "measured"

ShouldStop = Callable[[], bool]


def pipeline(place: Place, should_stop: ShouldStop) -> Outcome:
    """All stages, each model measured."""
    try:
        _, outcome = place.do(
            place.folder(PIPELINE),
            place.config,
            lambda _config, run, observer: run_r1(place.config, run, observer, should_stop),
        )
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        say("all is done but the page, which wants matplotlib")
        return Outcome.FINISHED
    return outcome


def baselines(place: Place, _should_stop: ShouldStop) -> Outcome:
    """What an answer that is always the same gets, and a blind guess of the right form, on the problems measured on."""
    evals, found = place.config.measure.evals, dict[str, Any]()
    for word in evals.tasks:
        task = open_task(word, at="measure.evals.tasks")
        test = task.problems("test", evals.problems, EVAL_SEED)
        train = task.problems("train", TRAIN_PROBLEMS, EVAL_SEED)
        constant = best_constant(task, train, test, seed=EVAL_SEED)
        found[task.id] = {
            "constant": constant.model_dump() if constant else None,
            "guess": blind_guess(task, test, seed=EVAL_SEED).model_dump(),
        }
    folder = place.folder("baselines")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / BASELINES, encode(found) + b"\n")
    return Outcome.FINISHED


def equal_flops(place: Place, should_stop: ShouldStop, *, part: str) -> Outcome:
    """RL from the student as it was pretrained, for the FLOPs of what made the other one; then measured."""
    budget, tried = sum(counted_flops(place, part).values()), dict[int, float]()
    steps = whole_steps(budget, _likely_step_flops(place))
    while steps not in tried and len(tried) < ATTEMPTS:
        folder = place.folder(part) / f"rl-{len(tried) + 1}"
        run, outcome = _rl(place, folder, plain_rl(place, steps), should_stop)
        if outcome is not Outcome.FINISHED:
            return outcome
        tried[steps] = stage_flops(run, "rl")
        say(f"{part}: {steps} steps took {tried[steps] / budget:.2f} of the FLOPs")
        if abs(tried[steps] / budget - 1) > TOLERANCE_FRAC:
            steps = next_steps(budget, tried)
    return _measured(place, part, nearest_attempt(place, part), should_stop)


def next_steps(budget: float, tried: Mapping[int, float]) -> int:
    """Steps that may come nearer to a budget of FLOPs than those that were tried, by what each of them took.

    With one, in proportion; then along the line through the two nearest, for steps become cheaper as responses become
    shorter. At most twice the nearest.
    """
    near, *rest = sorted(tried, key=lambda steps: abs(tried[steps] - budget))
    step_flops = tried[near] / near
    if rest:
        slope = (tried[near] - tried[rest[0]]) / (near - rest[0])
        step_flops = slope if slope > 0 else step_flops
    return min(2 * near, max(1, near + round((budget - tried[near]) / step_flops)))


def counted_flops(place: Place, part: str) -> dict[str, float]:
    """By what they went into, the FLOPs that RL gets: training on traces, sampling the traces, and what followed.

    The traces are counted in full, though fine-tuning of the mixture used them too; neither side pays for the
    pretraining, nor for the making of the teacher.
    """
    found = {
        "fine-tuning on traces": stage_flops(place.stage("distil"), "sft"),
        "sampling the traces": stage_flops(place.stage("rejection_sampling"), "collect"),
    }
    if part == "rl_as_on_policy":
        found["on-policy distillation"] = stage_flops(place.stage("on_policy"), "rl")
    return found


def attempts(place: Place, part: str) -> list[Run]:
    """Runs of RL to come near the budget, in their order."""
    found = sorted(place.folder(part).glob("rl-*/run.json"))
    return [Run.open(path.parent) for path in found]


def nearest_attempt(place: Place, part: str) -> Run:
    budget = sum(counted_flops(place, part).values())
    return min(attempts(place, part), key=lambda run: abs(stage_flops(run, "rl") - budget))


def stage_flops(run: Run, stage: str) -> float:
    """Of one stage of a run, over all its sessions; 0 where it has used nothing."""
    total = run.stage_total(stage)
    return total.flops if total else 0.0


def plain_rl(place: Place, steps: int) -> RlRunConfig:
    """The pipeline's pure RL from the student: without looks, so that every operation goes into learning."""
    document = place.settings("zero").model_dump(mode="json")
    document["model"] = str(place.model("student"))
    document["rl"] |= {"steps": steps}
    document["rl"]["alarms"] |= {"held_out_every_steps": None, "audit_every_steps": None}
    document["rl"]["rollout"] |= {"save_every_steps": None}
    return RlRunConfig.model_validate(document)


def _likely_step_flops(place: Place) -> float:
    """From the pipeline's pure RL, whose model is another."""
    zero = place.settings("zero")
    assert isinstance(zero, RlRunConfig)
    student, base = (
        flops_per_token(read_config(place.model(name)), CONTEXT, backward=True)
        for name in ("student", "base")
    )
    return stage_flops(place.stage("zero"), "rl") / zero.rl.steps * student / base


def hacking(place: Place, should_stop: ShouldStop, *, part: str) -> Outcome:
    """The second RL again, watched closely: as it is published, or provoked to be gamed; then measured."""
    config = published_rl(place) if part == "published" else provoked_rl(place)
    run, outcome = _rl(place, place.folder(part) / "rl", config, should_stop)
    if outcome is not Outcome.FINISHED:
        return outcome
    return _measured(place, part, run, should_stop)


def published_rl(place: Place) -> RlRunConfig:
    """The pipeline's second RL, with many looks."""
    document = place.settings("rl2").model_dump(mode="json")
    every = max(1, document["rl"]["steps"] // LOOKS)
    document["rl"]["alarms"] |= {"held_out_every_steps": every}
    document["rl"]["rollout"] |= {"save_every_steps": every}
    return RlRunConfig.model_validate(document)


def provoked_rl(place: Place) -> RlRunConfig:
    """The same on the tasks alone that models score: their scores from the first step, nothing else, for longer."""
    document = published_rl(place).model_dump(mode="json")
    reward = document["rl"]["reward"]
    scored = {
        task: weights | {"correct": 0.0, "well_formed": 0.0}
        for task, weights in reward["by_task"].items()
        if weights["preference"] or weights["safety"]
    }
    reward |= {"by_task": scored, "model_rewards_last_steps": None}
    words = [word for word in document["rl"]["tasks"] if word.partition(",")[0] in scored]
    document["rl"] |= {"tasks": words, "steps": PRESSURE * document["rl"]["steps"]}
    return RlRunConfig.model_validate(document)


def _rl(
    place: Place, folder: Path, config: RlRunConfig, should_stop: ShouldStop
) -> tuple[Run, Outcome]:
    return place.do(
        folder,
        config,
        lambda _config, run, observer: run_rl(config, run, observer, should_stop, only_rl=True),
    )


def _measured(place: Place, part: str, made: Run, should_stop: ShouldStop) -> Outcome:
    """The model of a run beside the pipeline, measured as the pipeline's are; `measured/measure_PART.json`."""
    doing = {
        MEASURE + part: functools.partial(measure, stage=part, folder=made.model_dir().resolve())
    }

    def beside(_config: Any, run: Run, observer: Any) -> Outcome:
        # Answers of the base: who wins is told against them.
        run.write_samples(MEASURE + BASE, place.pipeline.samples(MEASURE + BASE))
        return run_stages(place.config, run, observer, should_stop, doing)

    return place.do(place.folder(part) / MEASURED, place.config, beside)[1]


PARTS: Mapping[str, Callable[[Place, ShouldStop], Outcome]] = {
    PIPELINE: pipeline,
    "baselines": baselines,
    "rl_as_distil": functools.partial(equal_flops, part="rl_as_distil"),
    "rl_as_on_policy": functools.partial(equal_flops, part="rl_as_on_policy"),
    "published": functools.partial(hacking, part="published"),
    "provoked": functools.partial(hacking, part="provoked"),
}
