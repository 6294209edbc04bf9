"""What many runs came to, in one small file: `results.json` of bench/ladder.py."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from controls.ladder_run import DONE, REFUSED
from controls.results import FILE
from nalar.config import UserError
from nalar.disk import encode, write_atomic
from nalar.machine import Environment
from nalar.run import Metric, Run

NAME = "results.json"
POINTS = 60
"""Of a curve, at most."""
SHOWN = 3
"""Problems of each task whose first response is kept, before and after."""
_CURVES = (
    "loss",
    "reward",
    "accuracy/",
    "response_tokens/",
    "self_check_frac",
    "entropy",
    "truncated_frac",
    "silent_groups",
    "first_log_ratio_rms",
    "verifier_errors",
    "timeouts",
    "skipped_updates",
)
"""Beginnings of the names of metrics that are kept."""


class One(BaseModel):
    """A run, as far as it came."""

    recipe: str
    seed: int
    stage: str
    """The last that it has a receipt of, then `controls`, then `whole`; or `refused`."""
    refusal: str | None = None
    environment: Environment | None = None
    tasks: list[str] = Field(default_factory=list)
    """The words of its config."""
    stages: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Tokens, FLOPs and seconds of each."""
    before: dict[str, Any] = Field(default_factory=dict)
    after: dict[str, Any] = Field(default_factory=dict)
    baselines: dict[str, Any] = Field(default_factory=dict)
    probe: list[dict[str, Any]] = Field(default_factory=list)
    controls: dict[str, Any] = Field(default_factory=dict)
    """Without the shares of single problems."""
    curves: dict[str, dict[str, list[list[float]]]] = Field(default_factory=dict)
    """By stage and metric: pairs of step and value, thinned."""
    samples: list[dict[str, Any]] = Field(default_factory=list)


class Joined(BaseModel):
    """All runs of one call and of those before it, by name."""

    schema_version: int = 1
    runs: dict[str, One] = Field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Joined":
        path = folder / NAME
        if not path.exists():
            raise UserError(
                at=str(folder), got=f"no {NAME}", want="the --out of the call before this one"
            )
        return cls.model_validate_json(path.read_text())

    def is_whole(self, name: str) -> bool:
        return name in self.runs and self.runs[name].stage in ("whole", "refused")


def joined(known: Joined, runs: Sequence[tuple[str, Path]]) -> Joined:
    """What was known, and every run that has a folder."""
    found = dict(known.runs)
    for name, path in runs:
        if (path / "run.json").exists():
            found[name] = _one(path)
        elif (path / REFUSED).exists():
            recipe, _, seed = name.rpartition("-seed")
            refusal = (path / REFUSED).read_text()
            found[name] = One(recipe=recipe, seed=int(seed), stage="refused", refusal=refusal)
    return Joined(runs=found)


def write_joined(out: Path, found: Joined) -> None:
    write_atomic(out / NAME, encode(found.model_dump()) + b"\n")


def _one(path: Path) -> One:
    run = Run.open(path)
    totals = run.stage_totals()
    refusal = (path / REFUSED).read_text() if (path / REFUSED).exists() else None
    return One(
        recipe=run.info.config["recipe"],
        seed=run.info.seed,
        stage=_stage(path, totals[-1].name if totals else "begun"),
        refusal=refusal,
        environment=run.info.environment,
        tasks=run.info.config["evals"]["tasks"],
        stages={
            r.name: {"tokens": r.tokens, "flops": r.flops, "wall_s": round(r.wall_s, 1)}
            for r in totals
        },
        before=_json(path / "results_before.json") or {},
        after=_json(path / "results_after.json") or {},
        baselines=_json(path / "baselines.json") or {},
        probe=_json(path / "probe.json") or [],
        controls=without_problems(_json(path / FILE) or {}),
        curves={
            stage: thinned(run.metrics(stage)) for stage in ("pretrain", "rl") if run.metrics(stage)
        },
        samples=_samples(run),
    )


def _stage(path: Path, last: str) -> str:
    if (path / REFUSED).exists():
        return "refused"
    if (path / DONE).exists():
        return "whole"
    return "controls" if (path / FILE).exists() else last


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def without_problems(value: Any) -> Any:
    """The same without lists of single problems, which are most of it."""
    if isinstance(value, dict):
        return {k: without_problems(v) for k, v in value.items() if k != "by_problem"}
    return [without_problems(v) for v in value] if isinstance(value, list) else value


def thinned(
    metrics: Sequence[Metric], kept: tuple[str, ...] = _CURVES
) -> dict[str, list[list[float]]]:
    """Of each kept metric every n-th value, and the last; six digits. kept: beginnings of names."""
    curves: dict[str, list[list[float]]] = {}
    for metric in metrics:
        for name, value in metric.values.items():
            if name.startswith(kept) and value == value:  # nan is not
                curves.setdefault(name, []).append([metric.step, float(f"{value:.6g}")])
    return {name: _every(points) for name, points in curves.items()}


def _every(points: list[list[float]]) -> list[list[float]]:
    stride = -(-len(points) // POINTS)
    return points if stride <= 1 else [*points[:-1][::stride], points[-1]]


def _samples(run: Run) -> list[dict[str, Any]]:
    """The first response to the first problems of each task."""
    kept = []
    for stage in ("evaluate_base", "evaluate_final"):
        seen: dict[str, set[str]] = {}
        for row in run.samples(stage):
            keys = seen.setdefault(row["task"], set())
            if row["key"] not in keys and len(keys) < SHOWN:
                keys.add(row["key"])
                kept.append({"stage": stage, **row})
    return kept
