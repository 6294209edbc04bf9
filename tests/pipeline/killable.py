"""A run in a process of its own, there to be killed: it says what it does, line by line.

python killable.py CONFIG RUN [POINT NUMBER]: begins the run in the folder RUN, or goes on with it. With POINT it says
`at POINT` when it comes there for the NUMBER-th time, and then stands still.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nalar.disk
from nalar.evals import report_html
from nalar.pipeline import session as session_module
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.session import Session
from nalar.pipeline.writer import Writer
from nalar.pipeline.zero import run_zero
from nalar.rl import loop as loop_module
from nalar.rl import verdicts as verdicts_module
from nalar.rl.sampler import Sampler
from nalar.run import Run
from nalar.train import checkpoint as checkpoint_module
from nalar.train import shelf as shelf_module


def say(*words: object) -> None:
    print(*words, flush=True)


class Speaker:
    """An observer that says each step, which is when a parent may choose to kill."""

    def stage_started(self, stage: str, *, steps: int | None, done: int = 0) -> None:
        say("start", stage, done)

    def step(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        say("step", stage, step)

    def note(self, text: str) -> None:
        say("note", text)

    def stage_finished(self, stage: str) -> None:
        say("finished", stage)


class Stop:
    """Stands still at the n-th passage."""

    def __init__(self, point: str, number: int) -> None:
        self.point, self.left = point, number

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            say("at", self.point)
            time.sleep(3600)

    def before(self, owner: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
        self._wrap(owner, name, when, first=True)

    def after(self, owner: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
        self._wrap(owner, name, when, first=False)

    def _wrap(self, owner: Any, name: str, when: Callable[..., bool], *, first: bool) -> None:
        plain = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if first and when(*args):
                self()
            result = plain(*args, **kwargs)
            if not first and when(*args):
                self()
            return result

        setattr(owner, name, wrapped)


def is_checkpoint(temp: Path, target: Path) -> bool:
    return temp.name.endswith(".tmp") and target.parent.name == "checkpoints"


def half_a_line(stop: Stop) -> None:
    plain = nalar.disk._write_all

    def torn(fd: int, data: bytes) -> None:
        if data.startswith(b'{"stage"') and stop.left == 1:
            plain(fd, data[: len(data) // 2])
        stop()
        plain(fd, data)

    nalar.disk._write_all = torn


def half_removed(stop: Stop) -> None:
    plain = nalar.disk.shutil.rmtree

    def torn(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.parent.name == "checkpoints" and path.exists():
            (path / "model.safetensors").unlink(missing_ok=True)
            stop()
        plain(path, *args, **kwargs)

    nalar.disk.shutil.rmtree = torn


POINTS: dict[str, Callable[[Stop], None]] = {
    # in the order in which a save comes to them
    "receipt written": lambda stop: stop.after(Run, "record"),
    "copied": lambda stop: stop.after(session_module, "take_snapshot"),
    "handed over": lambda stop: stop.after(Writer, "do"),
    "weights written": lambda stop: stop.after(checkpoint_module, "save_model"),
    "manifest missing": lambda stop: stop.after(checkpoint_module, "save_file"),
    "flushed": lambda stop: stop.before(Path, "rename", is_checkpoint),
    "renamed": lambda stop: stop.after(Path, "rename", is_checkpoint),
    "linked": lambda stop: stop.after(Run, "point_model_to"),
    "half removed": half_removed,
    "retained": lambda stop: stop.after(shelf_module.Shelf, "retain"),
    # of a step of RL
    "drawing": lambda stop: stop.after(Sampler, "step"),
    "scoring": lambda stop: stop.before(verdicts_module, "judge_response"),
    "updating": lambda stop: stop.after(loop_module, "update"),
    "rollouts written": lambda stop: stop.after(loop_module, "save_rollouts"),
    # elsewhere
    "torn line": half_a_line,
    "going back": lambda stop: stop.before(Run, "cut_back"),
    "samples written": lambda stop: stop.after(Run, "write_samples"),
    "before commit": lambda stop: stop.before(Session, "mark_done"),
    "after commit": lambda stop: stop.after(Session, "mark_done"),
}


def main(config_path: str, run_path: str, point: str = "", number: str = "0") -> None:
    if point:
        POINTS[point](Stop(point, int(number)))
    config = ZeroConfig.model_validate(json.loads(Path(config_path).read_text()))
    path = Path(run_path)
    if (path / "run.json").exists():
        run = Run.open(path)
    else:
        settings = config.model_dump(mode="json")
        run = Run.create(path.parent, path.name, settings, "killable", config.seed)
    report_html._figures = (
        lambda report: []
    )  # nobody looks at them, and drawing takes longer than most stages
    say("ended", run_zero(config, run, Speaker(), lambda: False, force=True))
    say("compilers", "torch._dynamo" in sys.modules)


if __name__ == "__main__":
    main(*sys.argv[1:])
