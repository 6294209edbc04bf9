"""A small pipeline, with stand-ins for what collects data and what trains reward models, that can be killed.

python killable_r1.py CONFIG RUN: begins the pipeline in the folder RUN, or goes on with it, and says what it does.
"""

import json
import sys
from pathlib import Path
from typing import Any

from nalar.pipeline import r1 as r1_module
from nalar.pipeline.collect_config import CollectConfig
from nalar.pipeline.config import RewardRunConfig
from nalar.pipeline.r1 import run_r1
from nalar.pipeline.r1_config import R1Config
from nalar.pipeline.state import Outcome
from nalar.pipeline.training import run_stages
from nalar.plan.r1_stages import STAGES
from nalar.run import Run
from nalar.tasks.registry import open_task

REAL = r1_module.run_as_its_kind


def as_its_kind(config: Any, run: Run, observer: Any, should_stop: Any) -> Outcome:
    """The real thing, but for the two kinds that have a stand-in here."""
    last = STAGES[run.path.name].ends_with
    if isinstance(config, CollectConfig):
        return run_stages(config, run, observer, should_stop, {last: collect})
    if isinstance(config, RewardRunConfig):
        return run_stages(config, run, observer, should_stop, {last: reward})
    return REAL(config, run, observer, should_stop)


def collect(session: Any) -> Outcome:
    """Gold answers."""
    task = open_task(session.config.tasks[0], at="tasks")
    lines = []
    for problem in task.problems("train", 40, session.config.seed):
        said = {"role": "assistant", "reasoning_content": "1+1=2", "content": task.gold(problem)}
        messages = [{"role": "user", "content": problem.prompt}, said]
        lines.append(json.dumps({"messages": messages, "origin": "self"}))
    with session.start("collect", steps=1) as meter:
        (session.run.path / "dataset.jsonl").write_text("\n".join(lines) + "\n")
        session.run.write_json("collect.json", {"kept": len(lines)})
        session.receipt("collect", meter)
    return Outcome.FINISHED


def reward(session: Any) -> Outcome:
    """A folder, as one is left."""
    with session.start("reward_test", steps=1) as meter:
        folder = session.run.path / "checkpoints" / "reward-1"
        folder.mkdir(parents=True, exist_ok=True)
        session.run.point_model_to(folder)
        session.run.write_json("reward.json", {"accuracy": 0.5})
        session.receipt("reward_test", meter)
    return Outcome.FINISHED


def say(*words: object) -> None:
    print(*words, flush=True)


class Speaker:
    """An observer that says each step, which is when a parent may choose to kill."""

    def stage_started(self, stage: str, *, steps: int | None, done: int = 0) -> None:
        say("start", stage, done)

    def step(self, stage: str, step: int, values: Any) -> None:
        say("step", stage, step)

    def note(self, text: str) -> None:
        pass

    def stage_finished(self, stage: str) -> None:
        say("finished", stage)


def main(config_path: str, run_path: str) -> None:
    r1_module.run_as_its_kind = as_its_kind
    config = R1Config.model_validate_json(Path(config_path).read_text())
    path = Path(run_path)
    if (path / "run.json").exists():
        run = Run.open(path)
    else:
        settings = config.model_dump(mode="json")
        run = Run.create(path.parent, path.name, settings, "killable", config.seed)
    say("ended", run_r1(config, run, Speaker(), lambda: False))


if __name__ == "__main__":
    main(*sys.argv[1:])
