"""Runs as the page shows them, read from their folders while they may still be written. Imports no torch."""

import contextlib
import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nalar.config import UserError
from nalar.disk import decode, finite
from nalar.plan.r1_stages import FOLDER, MEASURE, STAGES
from nalar.run import LEDGER, METRICS, Receipt, Run, add_up, run_folders
from nalar.server.run_files import NoSuchRunError, chunk, document, inside, opened
from nalar.server.run_samples import sets_of

MAX_READ_BYTES = 2_000_000
"""Of a log at a time; the page asks again for the rest."""
_STATE, _REPORT, _PIPELINE = "state.json", "report.json", "r1.json"


def listed(root: Path | None) -> dict[str, Any]:
    """All runs, the newest first; what cannot be read is named."""
    if root is None or not root.is_dir():
        return {"folder": None, "runs": [], "unreadable": []}
    found, unreadable = [], []
    for path in run_folders(root):
        try:
            run = opened(root, path.name, "")
            found.append(_summary(run, _receipts(run)))
        except (UserError, NoSuchRunError, OSError):
            unreadable.append(path.name)
    found.sort(key=lambda item: item["created"], reverse=True)
    return {"folder": root.name, "runs": found, "unreadable": unreadable}


def details(root: Path | None, name: str, part: str) -> dict[str, Any]:
    """A run's head, what it has cost, the stages of a pipeline, and whose samples there are."""
    run = opened(root, name, part)
    receipts = _receipts(run)
    return {
        **_summary(run, receipts),
        "seed": run.info.seed,
        "command": run.info.command,
        "machine": run.info.environment.gpu or run.info.environment.cpu,
        "commit": run.info.environment.commit,
        "parts": _parts(run),
        "receipts": [finite(asdict(receipt)) for receipt in receipts],
        "samples": sets_of(run),
        "results": _results(run),
    }


def metrics(
    root: Path | None, name: str, part: str, since: int, keys: Sequence[str]
) -> dict[str, Any]:
    """What was logged behind byte `since`: values whose name is one of `keys` or begins with one and a slash; all
    where there are none.

    `next` is what to ask with the next time. `reset` says that the log was cut back and this begins at its start.
    """
    run = opened(root, name, part)
    data, begin, has_more = chunk(inside(run.path, METRICS), since, MAX_READ_BYTES)
    lines: list[dict[str, Any]] = []
    names: set[str] = set()
    for line in data.split(b"\n"):
        record = decode(line)
        values = None if record is None else record.get("values")
        if record is None or not isinstance(values, Mapping):
            continue
        names |= values.keys()
        kept = {key: value for key, value in values.items() if not keys or _is_wanted(key, keys)}
        lines.append({"stage": record.get("stage"), "step": record.get("step"), "values": kept})
    end = begin + len(data)
    found: dict[str, Any] = finite(
        {
            "lines": lines,
            "names": sorted(names),
            "next": end,
            "more": has_more,
            "reset": begin != since,
            "state": _state(run),
        }
    )
    return found


def _summary(run: Run, receipts: Sequence[Receipt]) -> dict[str, Any]:
    stages = [receipt for receipt in receipts if not receipt.name.startswith(MEASURE)]
    return {
        "name": run.path.name,
        "recipe": str(run.info.config.get("recipe") or ""),
        "created": run.info.created,
        "stage": stages[-1].name if stages else "",
        "state": _state(run),
        "is_pipeline": (run.path / FOLDER).is_dir(),
        "wall_s": sum(receipt.wall_s for receipt in receipts),
        "usd": sum(receipt.usd for receipt in receipts),
    }


def _state(run: Run) -> str:
    """running, finished or stopped. A run is running while a process holds its folder."""
    if _is_held(run.path):
        return "running"
    report = _PIPELINE if (run.path / FOLDER).is_dir() else _REPORT
    if document(run, report).get("is_complete") is True:
        return "finished"
    stage = STAGES.get(run.path.name) if run.path.parent.name == FOLDER else None
    if stage is not None and stage.ends_with in _done(run):
        return "finished"
    return "stopped"


def _is_held(folder: Path) -> bool:
    """Whether a process is writing. Asked by a shared lock that is let go at once."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks
    finally:
        os.close(fd)
    return False


def _parts(run: Run) -> list[dict[str, Any]]:
    """The stages of a pipeline in their order, those that its config leaves out left out."""
    folder = run.path / FOLDER
    if not folder.is_dir():
        return []
    parts = []
    for name, stage in STAGES.items():
        is_on = run.info.config.get(name) is not None
        if not is_on and not (folder / name / "run.json").is_file():
            continue
        state, wall_s, usd = "waiting", 0.0, 0.0
        with contextlib.suppress(UserError, NoSuchRunError, OSError):
            own = opened(run.path.parent, run.path.name, name)
            receipts = _ledger(own)
            state = _state(own)
            wall_s, usd = sum(r.wall_s for r in receipts), sum(r.usd for r in receipts)
        parts.append(
            {
                "name": name,
                "title": stage.title,
                "makes": stage.makes,
                "state": state,
                "wall_s": wall_s,
                "usd": usd,
            }
        )
    return parts


def _receipts(run: Run) -> list[Receipt]:
    """One a stage; of a pipeline one for each of its stages' runs, then those of its own."""
    inner: list[Receipt] = []
    for name in STAGES if (run.path / FOLDER).is_dir() else ():
        with contextlib.suppress(UserError, NoSuchRunError, OSError):
            own = opened(run.path.parent, run.path.name, name)
            inner += [Receipt(**{**asdict(receipt), "name": name}) for receipt in _ledger(own)]
    return [*add_up(inner).values(), *add_up(_ledger(run)).values()]


def _ledger(run: Run) -> list[Receipt]:
    inside(run.path, LEDGER)
    return run.ledger()


def _results(run: Run) -> list[dict[str, Any]]:
    """Pass at 1 by task of every model that was measured: before and after, or one for each stage of a pipeline."""
    files = {"before": ("", "results_before.json"), "after": ("", "results_after.json")}
    files |= {name: (stage.title, f"{MEASURE}{name}.json") for name, stage in STAGES.items()}
    found = []
    for name, (title, file) in files.items():
        measured_as = document(run, file)
        tasks = measured_as.get("tasks", measured_as)
        if not isinstance(tasks, Mapping):
            continue
        rates = {
            task: measured["pass_at_1"]
            for task, measured in tasks.items()
            if isinstance(measured, Mapping) and isinstance(measured.get("pass_at_1"), Mapping)
        }
        if rates:
            found.append({"name": name, "title": title, "tasks": finite(rates)})
    return found


def _is_wanted(name: str, keys: Sequence[str]) -> bool:
    return any(name == key or name.startswith(f"{key}/") for key in keys)


def _done(run: Run) -> list[Any]:
    done = document(run, _STATE).get("done", [])
    return done if isinstance(done, list) else []
