"""How far a pipeline has come, by what its stages' own runs say. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from nalar.pipeline.config import CollectConfig, RewardRunConfig, RlRunConfig, SftConfig, ZeroConfig
from nalar.pipeline.r1_config import R1Config, StageConfig
from nalar.pipeline.state import State
from nalar.plan.r1_stages import FOLDER
from nalar.run import Run

Standing = Literal["done", "begun", "left"]
LAST: Mapping[type[StageConfig], str] = {
    ZeroConfig: "pretrain",
    RlRunConfig: "rl",
    SftConfig: "held_out_after",
    CollectConfig: "collect",
    RewardRunConfig: "reward_test",
}
"""What the run of a stage has done last, by the kind of its config."""


def stage_path(run: Run, stage: str) -> Path:
    """The folder of a stage's own run, there or not."""
    return run.path / FOLDER / stage


def standing(config: R1Config, run: Run, stage: str) -> Standing:
    """How far a stage that is on has come."""
    path = stage_path(run, stage)
    if not (path / "run.json").is_file():
        return "left"
    done = State.read(Run.open(path)).done
    return "done" if LAST[type(config.settings(stage))] in done else "begun"


def done_stages(config: R1Config, run: Run) -> list[str]:
    """Those that have ended, in their order."""
    return [name for name in config.stages if standing(config, run, name) == "done"]
