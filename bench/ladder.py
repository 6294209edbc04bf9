"""Recipes times seeds, side by side on one machine, resumable in calls of a few minutes.

    python bench/ladder.py --recipes zero-sums-cpu zero-linear-cpu --seeds 0 1 2 --minutes 9 --out results/a
    python bench/ladder.py ... --out results/b --before results/a        # the next call, maybe on another machine
    python bench/ladder.py --table results/b/results.json --doc docs/ladder.md

Each run is a process of one thread (a recipe for a GPU keeps its own number) and has its folder under --work. It stops
itself in time, and so do the controls that follow it: greedy answers, more pretraining and rejection-sampling
fine-tuning at the FLOPs of RL, and for Countdown all that reads its tries.

--out gets results.json, whole runs of earlier calls included, and state-N.tar: what unfinished runs need to go on, in
parts of at most --part-mib. --before reads both back; runs that are still under --work are taken from there.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controls.ladder_results import Joined, joined, write_joined
from controls.ladder_state import pack, unpack
from controls.ladder_table import write_ladder
from controls.side_by_side import CLOSING_S, python, work_on
from nalar.config import UserError, lookup
from nalar.recipes.registry import RECIPES


@dataclass(frozen=True)
class Job:
    """One run."""

    recipe: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe}-seed{self.seed}"


def run_all(asked: argparse.Namespace) -> int:
    """One call: go on with every run until all are done or the time is up; write what there is."""
    started = time.monotonic()
    until = started + 60 * asked.minutes - CLOSING_S
    jobs = [Job(recipe, seed) for seed in asked.seeds for recipe in asked.recipes]
    for job in jobs:
        lookup(job.recipe, RECIPES, at="--recipes")
    work, out = asked.work, asked.out
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    known = Joined()
    if asked.before is not None:
        known = Joined.read(asked.before)
        unpack(asked.before, work)
    left = [job for job in jobs if not known.is_whole(job.name)]
    work_on(left, lambda job, rest: _start(job, work, rest), workers=asked.workers, until=until)
    found = joined(known, [(job.name, work / job.name) for job in left])
    write_joined(out, found)
    unfinished = [work / job.name for job in left if not found.is_whole(job.name)]
    dropped = pack(unfinished, out, part_bytes=asked.part_mib * 2**20, parts=asked.parts)
    for name in dropped:
        print(f"left out of the state, for want of room: {name}")
    whole = sum(found.is_whole(job.name) for job in jobs)
    print(f"{whole} of {len(jobs)} runs whole after {time.monotonic() - started:.0f} s")
    return 0


def _start(job: Job, work: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Its output goes to a log beside its folder."""
    config = RECIPES[job.recipe]()
    threads = 1 if config.device == "cpu" else config.threads
    return python(
        "controls.ladder_run",
        [job.recipe, str(job.seed), str(work / job.name), f"{seconds:.1f}", str(threads)],
        log=work / f"{job.name}.log",
        threads=threads,
        on_cpu=config.device == "cpu",
    )


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole call")
    parser.add_argument("--work", type=Path, default=Path("/tmp/ladder"), help="folders of runs")
    parser.add_argument("--out", type=Path, help="a folder for results and state")
    parser.add_argument("--before", type=Path, help="the --out of the call before")
    parser.add_argument("--part-mib", type=int, default=15)
    parser.add_argument("--parts", type=int, default=4, help="of the state, at most")
    parser.add_argument("--table", type=Path, nargs="+", help="results.json, of one call or more")
    parser.add_argument("--doc", type=Path, default=Path("docs/ladder.md"))
    asked = parser.parse_args(args)
    try:
        if asked.table:
            write_ladder(asked.table, asked.doc)
            return 0
        if not asked.recipes or asked.out is None:
            parser.error("wants --recipes and --out, or --table")
        return run_all(asked)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
