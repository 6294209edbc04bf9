"""A run that is killed by SIGKILL, wherever it is, and goes on, ends as if nothing had happened: to the bit."""

import json
import random
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nalar.pipeline.config import ZeroConfig

SCRIPT = Path(__file__).parent / "killable.py"
RL_POINTS = {"drawing": 60, "scoring": 90, "updating": 10, "rollouts written": 5}
"""Within a step of RL, with how often a run comes there at least."""
POINTS = (
    # of a save, in the order in which it comes to them
    "receipt written",
    "copied",
    "handed over",
    "weights written",
    "manifest missing",
    "flushed",
    "renamed",
    "linked",
    "half removed",
    "retained",
    # of everything else
    "torn line",
    "going back",
    "samples written",
    "before commit",
    "after commit",
)
CLOCK = {"wall_s", "usd", "energy_wh", "tokens_per_s", "mfu_frac", "started_at", "created"}
MACHINE = {"memory_bytes"}
"""What may differ: clock, energy, price, and what a virtual machine is lent from hour to hour."""


def without_ceiling(notes: list[str]) -> list[str]:
    """Every session measures what the machine can do and says it."""
    return [note for note in notes if "ceiling" not in note]


def config_to_kill(shrunk: ZeroConfig) -> ZeroConfig:
    """Several slices, saves between them and within RL; the probe never passes, so that all slices are used.

    RL cuts its steps short, so that unfinished rollouts wait in its checkpoints.
    """
    config = shrunk.model_dump()
    config["pretrain"] |= {
        "slice_tokens": 12 * config["packing"]["step_tokens"],
        "max_slices": 3,
        "save_every_steps": 5,
        "log_every_steps": 1,
    }
    config["probe"] |= {"min_hits": 10_000}
    config["rl"] |= {"steps": 6, "save_every_steps": 2}
    config["rl"]["rollout"] |= {"step_tokens": 60, "save_every_steps": 1, "max_refills": 1}
    # a reference that is renewed between two saves, and so is in none of their weights
    config["rl"]["kl"] |= {"coef": 0.05, "refresh_every_steps": 3}
    config["rl"]["correction"] |= {"old_logprobs": "trainer", "weights": "truncate"}
    config["evals"] |= {"tasks": ("chain_sum",)}
    return ZeroConfig.model_validate(config)


@dataclass(frozen=True)
class Kill:
    """When to kill a process."""

    point: str = ""
    """Where it is told to stand still; none: wherever it happens to be."""
    number: int = 1
    """The how manieth time there, or how many steps it may say before."""
    delay_s: float = 0.0


class Killer:
    """Runs one config in processes of their own."""

    def __init__(self, folder: Path, config: ZeroConfig, forks: Any) -> None:
        self.folder, self.forks = folder, forks
        self.config = folder / "config.json"
        self.config.write_text(config.model_dump_json())
        self.notes: list[str] = []
        self.loaded: list[str] = []

    def path(self, name: str) -> Path:
        return self.folder / name / "run"

    def run(self, name: str, kill: Kill | None = None) -> bool:
        """Begin or go on; whether it was killed before it ended."""
        point = [kill.point, str(kill.number)] if kill and kill.point else []
        self.forks.start(self.config, self.path(name), *point, cwd=self.folder)
        steps = 0
        for line in self.forks.lines():
            steps += line.startswith("step ")
            if line.startswith("note ") and "probe after" not in line and "pass@" not in line:
                self.notes.append(line)
            if line.startswith("compilers "):
                self.loaded.append(line)
            if kill is None:
                continue
            is_there = steps >= kill.number if not kill.point else line.startswith("at ")
            if is_there:
                time.sleep(kill.delay_s)
                self.forks.kill()
                kill = None
        assert self.forks.code in (0, -signal.SIGKILL)
        return self.forks.code != 0


def timeless(value: Any) -> Any:
    """Without what may differ."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in CLOCK | MACHINE}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def contents(run: Path) -> dict[str, Any]:
    """Every file of a run by its name, without what may differ."""
    found: dict[str, Any] = {"model": str((run / "model").readlink())}
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        if path.is_dir() or path.is_symlink() or name == "report.html":  # the page of report.json
            continue
        data = path.read_bytes()
        if path.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in data.splitlines()]
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(data))
        else:
            found[name] = data
        # Positions in the logs count the digits of clocks, and checksums those of positions.
        if path.name == "progress.json":
            assert found[name].pop("logs").keys() == {"metrics.jsonl", "ledger.jsonl"}
        elif path.name == "manifest.json":
            del found[name]["files"]["state/progress.json"]
        elif name == "state.json":
            found[name] = found[name]["done"]
    return found


def assert_same(run: Path, whole: dict[str, Any]) -> None:
    resumed = contents(run)
    assert resumed.keys() == whole.keys()
    assert [name for name in whole if resumed[name] != whole[name]] == []


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory, shrunk: ZeroConfig, make_forks) -> Killer:
    return Killer(tmp_path_factory.mktemp("killed"), config_to_kill(shrunk), make_forks(SCRIPT))


@pytest.fixture(scope="module")
def whole(killer: Killer) -> dict[str, Any]:
    """The run that nobody killed."""
    assert not killer.run("whole")
    return contents(killer.path("whole"))


def test_the_run_that_nobody_killed_learned_and_saved(whole):
    """Else there would be nothing to lose."""
    kept = {Path(name).parts[1] for name in whole if name.startswith("checkpoints/")}
    assert kept == {
        *("pretrain-000012", "pretrain-000024", "pretrain-000035", "pretrain-000036"),
        *("rl-000004", "rl-000006"),
    }
    bases = [whole[f"checkpoints/{name}/model.safetensors"] for name in sorted(kept)]
    assert len(set(bases)) == len(bases)
    assert len(whole["probe.json"]) == 3
    left = whole["checkpoints/rl-000004/state/loop.json"]["unfinished"]
    waiting = [response for group in left for response in group["responses"]]
    assert any(r["finish_reason"] == "abort" and r["token_ids"] for r in waiting)
    assert {version for r in waiting for version in r["versions"]} >= {3}
    assert whole["checkpoints/rl-000006/state/loop.json"]["unfinished"] == []
    pulled = [m["values"] for m in whole["metrics.jsonl"] if m["stage"] == "rl"]
    assert any(values["reference_kl"] > 0 for values in pulled)
    assert whole["checkpoints/rl-000004/state/reference.safetensors"]


def test_no_run_waits_for_compilers_that_it_does_not_use(killer, whole):
    """To load them takes as long as to load torch."""
    assert set(killer.loaded) == {"compilers False\n"}


def test_a_run_killed_three_times_ends_as_if_nothing_had_happened(killer, whole):
    """Within a step; between the last byte of a checkpoint and its name; while answers of RL are being checked."""
    assert killer.run("thrice", Kill(number=8, delay_s=0.004))
    assert killer.run("thrice", Kill("flushed", 4))
    assert killer.run("thrice", Kill("scoring", 80))
    assert not killer.run("thrice")
    assert_same(killer.path("thrice"), whole)
    assert without_ceiling(killer.notes) == []  # no checkpoint was damaged


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_twenty_times_ends_as_if_nothing_had_happened(killer, whole):
    """At every point that a save passes, and at moments that nobody chose."""
    draw = random.Random(20)
    often = dict.fromkeys(POINTS, 2) | RL_POINTS
    kills = [Kill(at, draw.randint(1, most), draw.uniform(0, 0.05)) for at, most in often.items()]
    kills += [Kill("", draw.randint(1, 20), draw.uniform(0, 0.05)) for _ in range(20 - len(kills))]
    draw.shuffle(kills)
    runs = 0
    while kills:
        runs += 1
        is_new = True
        while kills and killer.run(f"many-{runs}", kills[-1]):
            kills.pop()
            is_new = False
        # A run that ended before it came there: a new one shall, and if that does not, at an earlier time.
        if kills and is_new:
            assert kills[-1].number > 1, f"no run comes to {kills[-1].point!r}"
            kills[-1] = replace(kills[-1], number=kills[-1].number - 1)
        assert not killer.run(f"many-{runs}")
        assert_same(killer.path(f"many-{runs}"), whole)
    assert without_ceiling(killer.notes) == []
