"""What unfinished runs need to go on elsewhere, in few files of limited size."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from nalar.train.shelf import Shelf

NAME = "state-{}.tar"


def pack(
    runs: Sequence[Path],
    out: Path,
    *,
    part_bytes: int,
    parts: int,
    spare: Callable[[Path], set[str]] | None = None,
) -> list[str]:
    """Write state-0.tar and so on, each with whole runs; names of runs for which there was no room.

    Runs that came farthest are packed first. Of a run's checkpoints the newest of each stage is enough.
    spare: what of a run stays behind, as members of its archive. None: as a run of the ladder has it.
    """
    for old in out.glob(NAME.format("*")):
        old.unlink()
    packed = [
        (run, _packed(run, (spare or _spare)(run)))
        for run in sorted(runs, key=_progress, reverse=True)
    ]
    shelves: list[list[tuple[Path, bytes]]] = []
    dropped = []
    for run, data in packed:
        for shelf in shelves:
            if sum(len(other) + 2048 for _, other in shelf) + len(data) + 20_480 <= part_bytes:
                shelf.append((run, data))
                break
        else:
            if len(shelves) == parts or len(data) + 20_480 > part_bytes:
                dropped.append(run.name)
            else:
                shelves.append([(run, data)])
    for number, shelf in enumerate(shelves):
        with tarfile.open(out / NAME.format(number), "w") as tar:
            for run, data in shelf:
                member = tarfile.TarInfo(f"{run.name}.tgz")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return dropped


def unpack(before: Path, work: Path) -> None:
    """Runs of an earlier call, but for those that are still there."""
    for part in sorted(before.glob(NAME.format("*"))):
        with tarfile.open(part) as tar:
            for member in tar.getmembers():
                held = tar.extractfile(member)
                if held is None or (work / member.name.removesuffix(".tgz")).exists():
                    continue
                with tarfile.open(fileobj=io.BytesIO(held.read()), mode="r:gz") as run:
                    run.extractall(work, filter="data")


def _packed(run: Path, spare: set[str]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar:
        if run.exists():
            tar.add(run, run.name, filter=lambda m: None if m.name in spare else m)
    return file.getvalue()


def _spare(run: Path) -> set[str]:
    """What nobody goes on from, as members of the archive."""
    shelf = Shelf(run / "checkpoints")
    older = [path for stage in ("pretrain", "rl") for path in shelf.of(stage)[:-1]]
    kept_for_readers = [run / name for name in ("rollouts", "report.html", "report.json")]
    return {f"{run.name}/{path.relative_to(run)}" for path in (*older, *kept_for_readers)}


def _progress(run: Path) -> int:
    """How far a run came: by what it has written."""
    logs = [run / "metrics.jsonl", run / "controls.json"]
    return sum(log.stat().st_size for log in logs if log.exists())
