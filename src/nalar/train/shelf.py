"""The checkpoints of a run: which there are, which is the newest whole one, which stay."""

import re
from dataclasses import dataclass
from pathlib import Path

from nalar.config import UserError
from nalar.disk import disk_errors, remove_dir, sync
from nalar.train.checkpoint import damage, read_progress

DAMAGED = ".damaged"


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint of a stage, and those after it that are not whole."""

    folder: Path
    damaged: dict[Path, str]
    """What is wrong with each, the newest first."""


@dataclass(frozen=True)
class Shelf:
    """A folder of checkpoints named `<stage>-<step>`."""

    folder: Path

    def place(self, stage: str, step: int) -> Path:
        """Where the checkpoint of this step lies or is to lie."""
        return self.folder / f"{stage}-{step:06d}"

    def of(self, stage: str) -> list[Path]:
        """Those of a stage, oldest first, whole or not."""
        name = re.compile(rf"{re.escape(stage)}-(\d{{6,}})")
        found = {
            int(match[1]): path
            for path in self.folder.glob(f"{stage}-*")
            if (match := name.fullmatch(path.name)) and path.is_dir()
        }
        return [found[step] for step in sorted(found)]

    def newest(self, stage: str) -> Found | None:
        """The newest checkpoint of a stage that is whole; None where the stage has none at all.

        UserError where there are some and none of them is whole. Reads every byte of what it checks.
        """
        damaged: dict[Path, str] = {}
        for path in reversed(self.of(stage)):
            wrong = damage(path)
            if wrong is None:
                return Found(path, damaged)
            damaged[path] = wrong
        if not damaged:
            return None
        newest = next(iter(damaged))
        more = f" (and {len(damaged) - 1} before it)" if len(damaged) > 1 else ""
        raise UserError(
            at=str(newest),
            got=f"a damaged checkpoint{more}: {damaged[newest]}",
            want=f"a whole one of {stage}",
            hint=f"delete every {self.folder / stage}-*: --resume then begins the stage anew",
        )

    def set_aside(self, path: Path) -> Path:
        """Take a damaged checkpoint out of the way, under a name that says what it is."""
        aside = path.with_name(path.name + DAMAGED)
        with disk_errors(path):
            if aside.exists():
                remove_dir(aside)
            path.rename(aside)
            sync(self.folder)
        return aside

    def retain(self, stage: str, *, keep: int, keep_marked: bool) -> None:
        """Remove all of a stage but the newest `keep` and, with `keep_marked`, those whose progress says so."""
        for path in self.of(stage)[:-keep]:
            if not (keep_marked and _is_marked(path)):
                remove_dir(path)


def _is_marked(path: Path) -> bool:
    try:
        return read_progress(path).is_kept
    except UserError:  # damaged: nobody can say, so it stays
        return True
