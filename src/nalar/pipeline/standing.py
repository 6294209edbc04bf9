"""How far a pipeline has come, by what its stages' own runs say. Imports no torch."""

from pathlib import Path
from typing import Literal

from nalar.pipeline.r1_config import R1Config
from nalar.pipeline.state import State
from nalar.plan.r1_stages import FOLDER, STAGES
from nalar.run import Run

Standing = Literal["done", "begun", "left"]


def stage_path(run: Run, stage: str) -> Path:
    """The folder of a stage's own run, there or not."""
    return run.path / FOLDER / stage


def standing(run: Run, stage: str) -> Standing:
    """How far a stage has come."""
    path = stage_path(run, stage)
    if not (path / "run.json").is_file():
        return "left"
    done = State.read(Run.open(path)).done
    return "done" if STAGES[stage].ends_with in done else "begun"


def done_stages(config: R1Config, run: Run) -> list[str]:
    """Those that have ended, in their order."""
    return [name for name in config.stages if standing(run, name) == "done"]
