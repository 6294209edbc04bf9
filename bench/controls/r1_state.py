"""What an unfinished part of a seed can do without when it travels to another machine."""

from pathlib import Path

from nalar.pipeline.state import State
from nalar.plan.r1_stages import FOLDER
from nalar.run import ROLLOUTS, Run
from nalar.train.shelf import Shelf

_FOR_READERS = ("report.html", "r1.json")


def spare(folder: Path) -> set[str]:
    """As members of an archive of the folder: optimizers of runs that are done, older checkpoints, pages."""
    found = {folder / name for name in _FOR_READERS}
    for path in (path.parent for path in folder.glob("**/run.json")):
        # Rollouts of the runs beside a pipeline are read once they are over.
        is_stage = FOLDER in path.relative_to(folder).parts
        found |= _spare_of(path) | ({path / ROLLOUTS} if is_stage else set())
    return {f"{folder.name}/{path.relative_to(folder)}" for path in found}


def _spare_of(path: Path) -> set[Path]:
    """Of one run."""
    found = set[Path]()
    shelf, done = Shelf(path / "checkpoints"), State.read(Run.open(path)).checkpoints
    names = {entry.name.rpartition("-")[0] for entry in shelf.folder.glob("*-*")}
    for stage in names:
        of_stage = shelf.of(stage)
        found |= set(of_stage[:-1])
        if stage in done and of_stage:
            found.add(of_stage[-1] / "state")
    return found
