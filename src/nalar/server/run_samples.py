"""Samples of a run's models, two sets of them side by side. Imports no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nalar.disk import decode, finite
from nalar.plan.r1_stages import MEASURE, STAGES
from nalar.run import Run
from nalar.server.run_files import NAME, NoSuchRunError, chunk, inside, opened

MAX_SAMPLES_BYTES = 30_000_000
"""Read of one set."""
MAX_PAIRS = 200
MAX_TEXT_CHARS = 4_000
"""Of a prompt, a thought or an answer."""


def samples(root: Path | None, name: str, part: str, before: str, after: str) -> dict[str, Any]:
    """First responses to each problem of two sets of samples, side by side."""
    run = opened(root, name, part)
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
    document: dict[str, Any] = finite({"pairs": _evenly(pairs)[:MAX_PAIRS], "problems": len(pairs)})
    return document


def _evenly(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tasks in turn, so that the first pairs show all of them."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        by_task.setdefault(pair["task"], []).append(pair)
    longest = max(map(len, by_task.values()), default=0)
    return [group[i] for i in range(longest) for group in by_task.values() if i < len(group)]


def sets_of(run: Run) -> list[str]:
    """Whose samples there are: of a pipeline in the order of its models, else before RL and after."""
    folder = inside(run.path, "samples")
    there = {path.stem for path in folder.glob("*.jsonl")} if folder.is_dir() else set()
    order = ["evaluate_base", "evaluate_final", *(MEASURE + name for name in STAGES)]
    known = [name for name in order if name in there]
    return known + sorted(name for name in there - set(known) if NAME.fullmatch(name))


def _first_responses(run: Run, stage: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """By task, problem and way of thinking: the first response."""
    if not stage:
        return {}
    if not NAME.fullmatch(stage):
        raise NoSuchRunError(f"no samples {stage!r}")
    path = inside(run.path, f"samples/{stage}.jsonl")
    if not path.is_file():
        raise NoSuchRunError(f"no samples {stage!r}")
    data, _, _ = chunk(path, 0, MAX_SAMPLES_BYTES)
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
