"""`nalar r1` itself, killed by SIGKILL inside every kind of stage, ends as if nothing had happened: to the bit."""

import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nalar.plan.r1_stages import MEASURE, STAGES

CLOCK = {"wall_s", "usd", "energy_wh", "tokens_per_s", "mfu_frac", "started_at", "created"}
ASKED = {"memory_bytes", "command", "cache", "cache_dir"}
"""What may differ beside clock, energy and price: what a virtual machine is lent, and what the shell was told."""
LIMIT_S = 600

_SHORT = {
    "packing.step_tokens": 512,
    "pretrain.slice_tokens": 60 * 512,
    "pretrain.log_every_steps": 1,
    "pretrain.save_every_steps": 5,
    "tokenizer.sample_documents": 500,
}
_TUNED = {
    "log_every_steps": 1,
    "save_every_steps": 2,
    "packing.step_tokens": 160,
    "cache_dir": "CACHE",
}
_RL = {"rl.steps": 3, "rl.max_tokens": 48, "rl.save_every_steps": 1}
_COLLECTED = {"problems_per_task": 24, "chunk_problems": 4, "general_per_task": 16}
_JUDGED = {"pairs": 48, "pairs_per_step": 8, "log_every_steps": 1, "save_every_steps": 2}
CHANGES: dict[str, dict[str, Any]] = {
    "pretrain": _SHORT,
    "zero": _RL,
    "cold_start_data": {"problems_per_task": 24, "chunk_problems": 4},
    "cold_start": _TUNED,
    "rl1": _RL,
    "rejection_sampling": _COLLECTED,
    "sft": _TUNED,
    "preference_model": _JUDGED,
    "safety_model": _JUDGED,
    "rl2": _RL | {"rl.reward.model_rewards_last_steps": 2},
    "student": _SHORT,
    "distil": _TUNED,
    "on_policy": _RL,
    "measure": {"evals.problems": 2, "evals.k": 1, "evals.max_tokens": 48},
}
"""Every stage shorter than in r1-tiny, each with several saves."""


@dataclass(frozen=True)
class Kill:
    """As soon as a file of a stage (of the pipeline itself, where it measures) is there, with so many lines."""

    stage: str
    file: str
    lines: int = 0
    is_within: bool = True
    """Whether the stage cannot be done yet, however slowly the killer looks."""

    def has_come(self, run: Path) -> bool:
        path = self._folder(run) / self.file
        if not path.exists():
            return False
        if not self.lines:
            return True
        words = f'"{self.stage}"'.encode() if self.stage.startswith(MEASURE) else b""
        return sum(words in line for line in path.read_bytes().splitlines()) >= self.lines

    def is_done(self, run: Path) -> bool:
        path, name = self._folder(run) / "state.json", self.stage
        ends_with = name if name.startswith(MEASURE) else STAGES[name].ends_with
        return path.exists() and ends_with in json.loads(path.read_bytes())["done"]

    def _folder(self, run: Path) -> Path:
        return run if self.stage.startswith(MEASURE) else run / "stages" / self.stage


METRICS = "metrics.jsonl"
KILLS = (
    Kill("pretrain", METRICS, 3),  # before anything is saved
    Kill("pretrain", "checkpoints/pretrain-000005"),
    Kill("measure_pretrain", METRICS, 2),
    Kill("zero", METRICS, 1),
    Kill("cold_start_data", "collected/chunk-000001.json"),
    Kill("cold_start_data", "dataset.jsonl", is_within=False),
    Kill("cold_start", "run.json"),
    Kill("cold_start", "checkpoints/sft-000002", is_within=False),
    Kill("rl1", "checkpoints/rl-000002", is_within=False),
    Kill("measure_rl1", METRICS, 1),
    Kill("rejection_sampling", "collected/chunk-000003.json"),
    Kill("rejection_sampling", "collect.json", is_within=False),
    Kill("sft", METRICS, 2),
    Kill("preference_model", METRICS, 3),
    Kill("safety_model", "checkpoints/reward-000002", is_within=False),
    Kill("rl2", "models.json"),
    Kill("rl2", METRICS, 2),
    Kill("student", "checkpoints/pretrain-000005"),
    Kill("distil", METRICS, 3),
    Kill("on_policy", METRICS, 1),
    Kill("measure_on_policy", METRICS, 3),
)


class Pipeline:
    """`nalar r1 r1-tiny` in a folder of its own, one thread wide, in processes of its own."""

    def __init__(self, folder: Path, cache: Path, forks: Any) -> None:
        self.path, self.sessions, self.forks = folder / "run", 0, forks
        changes = [
            f"{stage}.{name}={cache if value == 'CACHE' else value}"
            for stage, settings in CHANGES.items()
            for name, value in settings.items()
        ]
        self._begin = ["r1-tiny", "--run", str(self.path), "--threads", "1", "--set", *changes]

    def start(self) -> None:
        is_new = not (self.path / "run.json").exists()
        words = self._begin if is_new else ["--run", str(self.path), "--resume"]
        self.sessions += 1
        self.forks.start("r1", *words, cwd=self.path.parent)

    def finish(self) -> str:
        """To its end; what it said."""
        self.start()
        said = "".join(self.forks.lines())
        assert self.forks.code == 0, said
        return said

    def killed(self, kill: Kill) -> None:
        """Begun or gone on with, until then."""
        self.start()
        until = time.monotonic() + LIMIT_S
        while self.forks.runs() and not kill.has_come(self.path):
            assert time.monotonic() < until, f"{kill} never came"
            time.sleep(0.004)
        self.forks.kill()
        said = "".join(self.forks.lines())
        assert self.forks.code == -signal.SIGKILL, f"{kill} never came:\n{said}"
        assert not (kill.is_within and kill.is_done(self.path)), f"{kill} came too late"


def timeless(value: Any, root: str) -> Any:
    """Without what may differ, and wherever it lies."""
    if isinstance(value, dict):
        return {
            key.replace(root, "ROOT"): timeless(item, root)
            for key, item in value.items()
            if key not in CLOCK | ASKED
        }
    if isinstance(value, list):
        return [timeless(item, root) for item in value]
    return value.replace(root, "ROOT") if isinstance(value, str) else value


def contents(run: Path) -> dict[str, Any]:
    """Every file of a pipeline and of its stages, and what each link points to."""
    root, found = str(run.resolve()), dict[str, Any]()
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir() or path.name == "report.html":  # the page of r1.json
            continue
        elif path.suffix == ".jsonl":
            lines = path.read_bytes().splitlines()
            found[name] = [timeless(json.loads(line), root) for line in lines]
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_bytes()), root)
        else:
            found[name] = path.read_bytes()
        # Positions in the logs count the digits of clocks, and checksums those of positions.
        if path.name == "progress.json" or path.parent.name == "collected":
            assert found[name].pop("logs").keys() <= {METRICS, "ledger.jsonl"}
        elif path.name == "manifest.json":
            del found[name]["files"]["state/progress.json"]
        elif path.name == "state.json":
            found[name] = found[name]["done"]
        elif path.name == "ledger.jsonl":
            found[name] = counted(found[name])
    return found


def counted(receipts: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """A stage that went on has a receipt more, maybe of nothing; its sums are the same."""
    return {
        name: tuple(
            sum(one[key] for one in receipts if one["name"] == name) for key in ("tokens", "flops")
        )
        for name in {one["name"] for one in receipts}
    }


@pytest.fixture(scope="module")
def command(make_forks) -> Any:
    """The command line, with what this verb imports."""
    return make_forks("nalar.cli.main", "nalar.cli.r1", "nalar.pipeline.r1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, command) -> Pipeline:
    """The pipeline that nobody killed."""
    folder, cache = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cache")
    pipeline = Pipeline(folder, cache, command)
    pipeline.finish()
    return pipeline


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_in_every_kind_of_stage_cost_only_time(whole, command, tmp_path, tmp_path_factory):
    pipeline = Pipeline(tmp_path, tmp_path_factory.mktemp("cache"), command)
    for kill in KILLS:
        pipeline.killed(kill)
    pipeline.finish()
    assert pipeline.sessions == len(KILLS) + 1
    killed, unbroken = contents(pipeline.path), contents(whole.path)
    assert killed.keys() == unbroken.keys()
    assert [name for name in unbroken if killed[name] != unbroken[name]] == []
    assert unbroken["r1.json"]["is_complete"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_finished_pipeline_does_no_work_when_it_is_asked_again(whole):
    stages = whole.path / "stages"
    before = {path: path.stat().st_mtime_ns for path in stages.rglob("*")}
    report = (whole.path / "r1.json").read_bytes()
    said = whole.finish()
    assert "nothing was left to do: every stage is done" in said and ": starts" not in said
    assert {path: path.stat().st_mtime_ns for path in stages.rglob("*")} == before
    assert (whole.path / "r1.json").read_bytes() == report
