"""What several seeds of a pipeline came to, in one small file: `results.json` of bench/r1.py."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from controls.ladder_results import NAME
from controls.r1_figures import Model
from controls.r1_parts import (
    BASELINES,
    MEASURED,
    attempts,
    counted_flops,
    nearest_attempt,
    stage_flops,
)
from controls.r1_place import DONE, NEEDS, PIPELINE, REFUSED, Place
from controls.r1_watch import Watched, watched
from nalar.config import UserError
from nalar.disk import encode, write_atomic
from nalar.evals.r1_report import DataReport, SideBySide, StageReceipt, build_r1
from nalar.evals.results import Finite
from nalar.machine import Environment
from nalar.pipeline.config import RlRunConfig
from nalar.pipeline.r1_measure import BASE
from nalar.plan.r1_stages import MEASURE, STAGES
from nalar.run import Run

EQUAL, ARMS = ("rl_as_distil", "rl_as_on_policy"), ("published", "provoked")
"""Parts of a kind."""


class Attempt(Finite):
    steps: int
    flops: float


class EqualFlops(Finite):
    """RL from the student at the FLOPs of another way to make it better."""

    counted: dict[str, float]
    """What those were spent on."""
    attempts: list[Attempt]
    """In their order; the nearest to the budget is the one that is measured."""
    steps: int
    flops: float
    model: Model

    @property
    def budget(self) -> float:
        return sum(self.counted.values())


class Arm(Finite):
    """The second RL, watched closely."""

    watched: Watched
    model: Model


class One(BaseModel):
    """A seed, as far as it came."""

    recipe: str
    seed: int
    command: str
    done: list[str] = Field(default_factory=list)
    """Parts."""
    refused: dict[str, str] = Field(default_factory=dict)
    """Parts that cannot be done, and why."""
    environment: Environment | None = None
    evals: dict[str, Any] = Field(default_factory=dict)
    """How models were measured."""
    models: dict[str, Model] = Field(default_factory=dict)
    """By name, in the order in which they are made."""
    stages: list[StageReceipt] = Field(default_factory=list)
    data: dict[str, DataReport] = Field(default_factory=dict)
    provenance: str = ""
    reward_models: dict[str, dict[str, Any]] = Field(default_factory=dict)
    samples: list[SideBySide] = Field(default_factory=list)
    """Of the first problem of each task."""
    rl: dict[str, Watched] = Field(default_factory=dict)
    """The pipeline's own runs of RL, by stage."""
    baselines: dict[str, Any] = Field(default_factory=dict)
    """By task id."""
    equal: dict[str, EqualFlops] = Field(default_factory=dict)
    """By part."""
    arms: dict[str, Arm] = Field(default_factory=dict)
    """By part."""

    @property
    def is_whole(self) -> bool:
        return all(part in self.done or part in self.refused for part in NEEDS)


class Joined(BaseModel):
    """All seeds of one call and of those before it, by name."""

    schema_version: int = 1
    seeds: dict[str, One] = Field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Joined":
        path = folder / NAME
        if not path.exists():
            raise UserError(
                at=str(folder), got=f"no {NAME}", want="the --out of the call before this one"
            )
        return cls.model_validate_json(path.read_text())

    def write(self, folder: Path) -> None:
        write_atomic(folder / NAME, encode(self.model_dump(mode="json")) + b"\n")

    def settled(self, name: str) -> list[str]:
        """Parts of a seed of which nothing is left to do."""
        one = self.seeds.get(name)
        return [] if one is None else [*one.done, *one.refused]


def joined(known: Joined, places: Sequence[Place]) -> Joined:
    """What was known, and whatever of these seeds has a folder."""
    found = dict(known.seeds)
    for place in places:
        before = found.get(place.name)
        found[place.name] = _one(place, before or _new(place))
    return Joined(seeds=found)


def _new(place: Place) -> One:
    return One(recipe=place.recipe, seed=place.seed, command=place.command)


def _one(place: Place, known: One) -> One:
    """A seed by its folders; of parts without a folder what was known of them."""
    now: dict[str, Any] = {}
    if (place.folder(PIPELINE) / "run.json").is_file():
        now |= _pipeline(place)
    refused, done = dict(known.refused), list(known.done)
    for part in NEEDS:
        folder = place.folder(part)
        if (folder / REFUSED).exists():
            refused[part] = (folder / REFUSED).read_text()
        elif (folder / DONE).exists() and part not in done:
            done.append(part)
    if (path := place.folder("baselines") / BASELINES).is_file():
        now["baselines"] = json.loads(path.read_text())
    now["equal"] = known.equal | {
        part: _equal(place, part) for part in EQUAL if _is_measured(place, part)
    }
    now["arms"] = known.arms | {
        part: _arm(place, part) for part in ARMS if _is_measured(place, part)
    }
    return known.model_copy(update=now | {"refused": refused, "done": done})


def _pipeline(place: Place) -> dict[str, Any]:
    run = place.pipeline
    report = build_r1(run)
    base = run.samples(MEASURE + BASE)
    models = {
        name: Model.read(result.model_dump(), run.samples(MEASURE + result.stage), base)
        for name, result in report.models.items()
    }
    shown = {one.task: one for one in reversed(report.samples)}
    return {
        "environment": run.info.environment,
        "evals": report.config["measure"],
        "models": models,
        "stages": report.stages,
        "data": report.data,
        "provenance": report.provenance,
        "reward_models": report.reward_models,
        "samples": list(reversed(shown.values())),
        "rl": {stage: watched(place.stage(stage), with_truth=False) for stage in _rl_stages(place)},
    }


def _rl_stages(place: Place) -> list[str]:
    """Runs of RL that are done."""
    return [
        name
        for name in place.config.stages
        if STAGES[name].makes == "model"
        and isinstance(place.config.settings(name), RlRunConfig)
        and place.has_done(name)
    ]


def _is_measured(place: Place, part: str) -> bool:
    return (place.folder(part) / DONE).exists()


def _measured(place: Place, part: str) -> Model:
    run = Run.open(place.folder(part) / MEASURED)
    return Model.read(
        run.read_json(f"{MEASURE}{part}.json"),
        run.samples(MEASURE + part),
        run.samples(MEASURE + BASE),
    )


def _equal(place: Place, part: str) -> EqualFlops:
    tried = [_attempt(run) for run in attempts(place, part)]
    best = _attempt(nearest_attempt(place, part))
    return EqualFlops(
        counted=counted_flops(place, part),
        attempts=tried,
        steps=best.steps,
        flops=best.flops,
        model=_measured(place, part),
    )


def _attempt(run: Run) -> Attempt:
    return Attempt(steps=run.info.config["rl"]["steps"], flops=stage_flops(run, "rl"))


def _arm(place: Place, part: str) -> Arm:
    return Arm(
        watched=watched(Run.open(place.folder(part) / "rl"), with_truth=True),
        model=_measured(place, part),
    )
