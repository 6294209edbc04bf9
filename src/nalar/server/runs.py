"""Runs as the page shows them, read from their folders while they may still be written. Imports no torch.

Names come from addresses: a run is a folder directly under the root, a part of it one of a pipeline's stages, and no
file is read that a link takes elsewhere.
"""

import contextlib
import fcntl
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nalar.config import UserError
from nalar.disk import decode
from nalar.plan.r1_stages import FOLDER, MEASURE, STAGES
from nalar.run import LEDGER, METRICS, Receipt, Run, add_up, run_folders

MAX_READ_BYTES = 2_000_000
"""Of a log at a time; the page asks again for the rest."""
MAX_SAMPLES_BYTES = 30_000_000
MAX_PAIRS = 200
MAX_TEXT_CHARS = 4_000
"""Of a thought or an answer of a sample."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_STATE, _REPORT, _PIPELINE = "state.json", "report.json", "r1.json"


class NoSuchRunError(Exception):
    """No run, or no part of one, by that name."""


def listed(root: Path | None) -> dict[str, Any]:
    """All runs, the newest first; what cannot be read is named."""
    if root is None or not root.is_dir():
        return {"folder": None, "runs": [], "unreadable": []}
    found, unreadable = [], []
    for path in run_folders(root):
        try:
            found.append(_summary(_opened(root, path.name, "")))
        except (UserError, NoSuchRunError, OSError):
            unreadable.append(path.name)
    found.sort(key=lambda item: item["created"], reverse=True)
    return {"folder": root.name, "runs": found, "unreadable": unreadable}


def details(root: Path | None, name: str, part: str) -> dict[str, Any]:
    """A run's head, what it has cost, the stages of a pipeline, and whose samples there are."""
    run = _opened(root, name, part)
    return {
        **_summary(run),
        "seed": run.info.seed,
        "command": run.info.command,
        "machine": run.info.environment.gpu or run.info.environment.cpu,
        "commit": run.info.environment.commit,
        "parts": _parts(run),
        "receipts": [_finite(asdict(receipt)) for receipt in _receipts(run)],
        "samples": _samples_there(run),
        "results": _results(run),
    }


def metrics(
    root: Path | None, name: str, part: str, since: int, keys: Sequence[str]
) -> dict[str, Any]:
    """What was logged behind byte `since`: values whose name is one of `keys` or begins with one and a slash; all
    where there are none.

    `next` is what to ask with the next time. `reset` says that the log was cut back and this begins at its start.
    """
    run = _opened(root, name, part)
    data, begin, size = _chunk(_inside(run.path, METRICS), since)
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
    return _document_of(
        {
            "lines": lines,
            "names": sorted(names),
            "next": end,
            "more": end < size,
            "reset": begin != since,
            "state": _state(run),
        }
    )


def samples(root: Path | None, name: str, part: str, before: str, after: str) -> dict[str, Any]:
    """First responses to each problem of two sets of samples, side by side."""
    run = _opened(root, name, part)
    first, second = _first_responses(run, before), _first_responses(run, after)
    pairs = [
        {
            "task": str(one.get("task", "")),
            "prompt": str(one.get("prompt", ""))[:MAX_TEXT_CHARS],
            "before": _response(first.get(key)),
            "after": _response(second.get(key)),
        }
        for key, one in {**second, **first}.items()
    ]
    return _document_of({"pairs": _evenly(pairs)[:MAX_PAIRS], "problems": len(pairs)})


def _evenly(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tasks in turn, so that the first pairs show all of them."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        by_task.setdefault(pair["task"], []).append(pair)
    longest = max(map(len, by_task.values()), default=0)
    return [group[i] for i in range(longest) for group in by_task.values() if i < len(group)]


def _opened(root: Path | None, name: str, part: str) -> Run:
    """The run, or the run of one stage of a pipeline."""
    if root is None or not _NAME.fullmatch(name) or not (part == "" or _NAME.fullmatch(part)):
        raise NoSuchRunError(f"no run {name!r}")
    path = root / name if part == "" else root / name / FOLDER / part
    resolved = path.resolve()
    if not resolved.is_relative_to(root.resolve()) or not (path / "run.json").is_file():
        raise NoSuchRunError(f"no run {'/'.join(filter(None, (name, part)))!r}")
    _inside(path, "run.json")
    return Run.open(path)


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder; NoSuchRunError where a link leads out of it."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise NoSuchRunError(f"{name} of {folder.name} is a link to elsewhere")
    return path


def _summary(run: Run) -> dict[str, Any]:
    stages = [stage for stage in _receipts(run) if not stage.name.startswith(MEASURE)]
    receipts = _receipts(run)
    return {
        "name": run.path.name,
        "recipe": str(run.info.config.get("recipe") or ""),
        "created": run.info.created,
        "stage": stages[-1].name if stages else "",
        "state": _state(run),
        "is_pipeline": (run.path / FOLDER).is_dir(),
        "wall_s": sum(receipt.wall_s for receipt in receipts),
        "usd": sum(receipt.usd for receipt in receipts),
        "written_s": _written_s(run),
    }


def _state(run: Run) -> str:
    """running, finished or stopped. A run is running while a process holds its folder."""
    if _is_held(run.path):
        return "running"
    report = _PIPELINE if (run.path / FOLDER).is_dir() else _REPORT
    if _document(run, report).get("is_complete") is True:
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


def _written_s(run: Run) -> float:
    """When something was last logged, in seconds since 1970; 0 where nothing was."""
    with contextlib.suppress(OSError):
        return (run.path / METRICS).stat().st_mtime
    return 0.0


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
            own = _opened(run.path.parent, run.path.name, name)
            receipts = own.ledger()
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
    _inside(run.path, LEDGER)
    inner: list[Receipt] = []
    for name in STAGES if (run.path / FOLDER).is_dir() else ():
        with contextlib.suppress(UserError, NoSuchRunError, OSError):
            own = _opened(run.path.parent, run.path.name, name)
            inner += [Receipt(**{**asdict(receipt), "name": name}) for receipt in own.ledger()]
    return [*add_up(inner).values(), *run.stage_totals()]


def _results(run: Run) -> list[dict[str, Any]]:
    """Pass at 1 by task of every model that was measured: before and after, or one for each stage of a pipeline."""
    files = {"before": ("", "results_before.json"), "after": ("", "results_after.json")}
    files |= {name: (stage.title, f"{MEASURE}{name}.json") for name, stage in STAGES.items()}
    found = []
    for name, (title, file) in files.items():
        document = _document(run, file)
        tasks = document.get("tasks", document)
        if not isinstance(tasks, Mapping):
            continue
        rates = {
            task: measured["pass_at_1"]
            for task, measured in tasks.items()
            if isinstance(measured, Mapping) and isinstance(measured.get("pass_at_1"), Mapping)
        }
        if rates:
            found.append({"name": name, "title": title, "tasks": _finite(rates)})
    return found


def _samples_there(run: Run) -> list[str]:
    """Whose samples there are: of a pipeline in the order of its models, else before RL and after."""
    folder = _inside(run.path, "samples")
    there = {path.stem for path in folder.glob("*.jsonl")} if folder.is_dir() else set()
    order = ["evaluate_base", "evaluate_final", *(MEASURE + name for name in STAGES)]
    known = [name for name in order if name in there]
    return known + sorted(name for name in there - set(known) if _NAME.fullmatch(name))


def _first_responses(run: Run, stage: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """By task, problem and way of thinking: the first response."""
    if not stage:
        return {}
    if not _NAME.fullmatch(stage):
        raise NoSuchRunError(f"no samples {stage!r}")
    path = _inside(run.path, f"samples/{stage}.jsonl")
    if not path.is_file():
        raise NoSuchRunError(f"no samples {stage!r}")
    data, _, _ = _chunk(path, 0, MAX_SAMPLES_BYTES)
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for line in data.split(b"\n"):
        row = decode(line)
        if row is not None:
            key = (str(row.get("task")), str(row.get("key")), str(row.get("mode")))
            found.setdefault(key, row)
    return found


def _response(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        "thought": str(row.get("thought") or "")[:MAX_TEXT_CHARS],
        "answer": str(row.get("answer") or "")[:MAX_TEXT_CHARS],
        "correct": row.get("correct") is True,
        "tokens": row.get("tokens"),
        "finish_reason": row.get("finish_reason"),
        "mode": row.get("mode"),
    }


def _chunk(path: Path, since: int, limit: int = MAX_READ_BYTES) -> tuple[bytes, int, int]:
    """Whole lines of a log behind a byte, where they begin, and how long the log is.

    They begin at 0 instead where no line ends at that byte: the log was cut back since.
    """
    try:
        file = path.open("rb")
    except OSError:
        return b"", 0, 0
    with file:
        size = file.seek(0, os.SEEK_END)
        begin = since
        if since > size or (since and _byte(file, since - 1) != b"\n"):
            begin = 0
        file.seek(begin)
        data = file.read(limit)
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) == limit:  # a line longer than any that nalar writes: skipped
            end = len(data)
    return data[:end], begin, begin + end if begin + len(data) >= size else size


def _byte(file: Any, at: int) -> bytes:
    file.seek(at)
    found: bytes = file.read(1)
    return found


def _is_wanted(name: str, keys: Sequence[str]) -> bool:
    return any(name == key or name.startswith(f"{key}/") for key in keys)


def _document(run: Run, name: str) -> dict[str, Any]:
    """A document of the run; empty where there is none that can be read."""
    with contextlib.suppress(UserError, NoSuchRunError, OSError):
        _inside(run.path, name)
        return run.read_json(name)
    return {}


def _done(run: Run) -> list[Any]:
    done = _document(run, _STATE).get("done", [])
    return done if isinstance(done, list) else []


def _document_of(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _finite(value) for key, value in values.items()}


def _finite(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
