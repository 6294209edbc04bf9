"""Where bench/r1.py keeps one seed: the pipeline's run, and a folder for each part beside it."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from controls.finished import PlainObserver
from nalar.disk import only_writer
from nalar.pipeline.config import RunConfig
from nalar.pipeline.r1 import made
from nalar.pipeline.r1_config import MADE_BY, R1Config, stage_config
from nalar.pipeline.standing import stage_path, standing
from nalar.pipeline.state import Outcome
from nalar.recipes.r1 import R1_RECIPES
from nalar.run import Run

PIPELINE = "pipeline"
DONE, REFUSED = "bench_done.txt", "bench_refused.txt"
"""In a part's folder: nothing is left to do; why it cannot be done."""
NEEDS: Mapping[str, tuple[str, ...]] = {
    PIPELINE: (),
    "baselines": (),
    "rl_as_distil": ("pretrain", "zero", "rejection_sampling", "student", "distil"),
    "rl_as_on_policy": ("pretrain", "zero", "rejection_sampling", "student", "distil", "on_policy"),
    "published": ("pretrain", "sft", "preference_model", "safety_model"),
    "provoked": ("pretrain", "sft", "preference_model", "safety_model"),
}
"""By part: stages of the pipeline that must be done before it begins."""
Doing = Callable[[RunConfig, Run, PlainObserver], Outcome]


@dataclass(frozen=True)
class Place:
    """One seed of a recipe."""

    recipe: str
    seed: int
    work: Path

    @property
    def name(self) -> str:
        return f"{self.recipe}-seed{self.seed}"

    @cached_property
    def config(self) -> R1Config:
        """One thread, on the CPU."""
        document = R1_RECIPES[self.recipe]().model_dump(mode="json")
        return R1Config.model_validate(
            document | {"seed": self.seed, "threads": 1, "device": "cpu"}
        )

    @property
    def command(self) -> str:
        words = ["python", "bench/r1.py", "--recipe", self.recipe, "--seeds", str(self.seed)]
        return shlex.join(words)

    def folder(self, part: str) -> Path:
        """Of a part; the pipeline's own is its run."""
        return self.work / (self.name if part == PIPELINE else f"{self.name}-{part}")

    @property
    def pipeline(self) -> Run:
        return Run.open(self.folder(PIPELINE))

    def stage(self, name: str) -> Run:
        """The run of a stage of the pipeline."""
        return Run.open(stage_path(self.pipeline, name))

    def has_done(self, stage: str) -> bool:
        path = self.folder(PIPELINE)
        if not (path / "run.json").is_file():
            return False
        return standing(Run.open(path), stage) == "done"

    def is_ready(self, part: str) -> bool:
        return all(self.has_done(stage) for stage in NEEDS[part])

    def settings(self, stage: str) -> RunConfig:
        """What a stage's run was asked, with the models of this seed in place of names."""
        return stage_config(self.config, stage, lambda name: str(self.model(name)))

    def model(self, name: str) -> Path:
        """What a stage has made. name: that stage's, or `base`."""
        return made(self.config, self.pipeline, name if name in MADE_BY else "base")

    def opened(self, folder: Path, config: RunConfig) -> Run:
        """A run of a part, begun or gone on with. ConfigError where it was begun with another config."""
        return Run.create(
            folder.parent,
            folder.name,
            config.model_dump(mode="json"),
            self.command,
            config.seed,
            resume=(folder / "run.json").is_file(),
        )

    def do(self, folder: Path, config: RunConfig, doing: Doing) -> tuple[Run, Outcome]:
        """Work on a run of a part, as its only writer."""
        run = self.opened(folder, config)
        with only_writer(run.path):
            return run, doing(config, run, PlainObserver())
