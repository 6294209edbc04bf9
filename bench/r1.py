"""The whole R1 recipe for several seeds side by side, and what is set beside it, resumable in calls of a few minutes.

    python bench/r1.py --recipe r1-cpu --seeds 0 1 2 --minutes 9 --out results/a
    python bench/r1.py ... --out results/b --before results/a        # the next call, maybe on another machine
    python bench/r1.py --table results/b/results.json --doc docs/r1.md

Every part is a process of one thread with a folder of its own under --work, and stops itself in time: the pipeline; RL
from its student at the FLOPs of distillation, without and with the on-policy half; its second RL watched closely, as it
is published and provoked to be gamed; answers that need no model. A part begins as soon as the stages that it needs are
done, so a worker for each part of each seed is not too many.

--out gets results.json, parts of earlier calls included, and state-N.tar: what unfinished seeds need to go on, in parts
of at most --part-mib. --before reads both back; what is still under --work, which must have the same name in every
call, is taken from there.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controls.ladder_state import pack, unpack
from controls.r1_place import NEEDS, PIPELINE, Place
from controls.r1_results import Joined, joined
from controls.r1_state import spare
from controls.r1_table import write_r1_table
from controls.side_by_side import CLOSING_S, python, work_on
from nalar.config import UserError, lookup
from nalar.recipes.r1 import R1_RECIPES


@dataclass(frozen=True)
class Job:
    """One part of one seed."""

    place: Place
    part: str

    @property
    def name(self) -> str:
        return self.place.folder(self.part).name

    @property
    def is_ready(self) -> bool:
        return self.place.is_ready(self.part)


def run_all(asked: argparse.Namespace) -> int:
    """One call: go on with every part until all are done or the time is up; write what there is."""
    started = time.monotonic()
    until = started + 60 * asked.minutes - CLOSING_S
    work, out = asked.work.resolve(), asked.out
    places = [Place(asked.recipe, seed, work) for seed in asked.seeds]
    refuse_partial(places[0])
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    known = Joined()
    if asked.before is not None:
        known = Joined.read(asked.before)
        unpack(asked.before, work)
    known = joined(known, places)
    work_on(left(known, places), _start, workers=asked.workers, until=until, is_ready=_is_ready)
    found = joined(known, places)
    found.write(out)
    unfinished = [job.place.folder(job.part) for job in needed(found, places)]
    mib = 2**20
    for name in pack(
        unfinished, out, part_bytes=asked.part_mib * mib, parts=asked.parts, spare=spare
    ):
        print(f"left out of the state, for want of room: {name}")
    settled = sum(len(found.settled(place.name)) for place in places)
    took = time.monotonic() - started
    print(f"{settled} of {len(places) * len(NEEDS)} parts settled after {took:.0f} s")
    return 0


def refuse_partial(place: Place) -> None:
    """UserError where a recipe lacks a stage that something is set beside."""
    wanted = dict.fromkeys(stage for stages in NEEDS.values() for stage in stages)
    lacking = [stage for stage in wanted if stage not in place.config.stages]
    if lacking:
        raise UserError(
            at=f"--recipe {place.recipe}",
            got="a pipeline without " + ", ".join(lacking),
            want="one that has every stage",
            hint="--recipe r1-cpu",
        )


def left(known: Joined, places: Sequence[Place]) -> list[Job]:
    """Parts that are not settled: the pipelines, which the others wait for, first."""
    jobs = [Job(place, part) for part in NEEDS for place in places]
    return [job for job in jobs if job.part not in known.settled(job.place.name)]


def needed(known: Joined, places: Sequence[Place]) -> list[Job]:
    """Parts whose folders somebody goes on from: those that are not settled, and pipelines while any is not."""
    jobs = left(known, places)
    waited_for = dict.fromkeys(Job(job.place, PIPELINE) for job in jobs)
    return list(dict.fromkeys([*waited_for, *jobs]))


def _is_ready(job: Job) -> bool:
    return job.is_ready


def _start(job: Job, seconds: float) -> subprocess.Popen[bytes]:
    """Its output goes to a log beside its folder."""
    place = job.place
    return python(
        "controls.r1_run",
        [
            *(place.recipe, str(place.seed), str(place.work), job.part),
            f"{time.monotonic() + seconds:.1f}",
        ],
        log=place.work / f"{job.name}.log",
        threads=1,
        on_cpu=True,
    )


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="r1-cpu", metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole call")
    parser.add_argument("--work", type=Path, default=Path("/tmp/r1"), help="folders of runs")
    parser.add_argument("--out", type=Path, help="a folder for results and state")
    parser.add_argument("--before", type=Path, help="the --out of the call before")
    parser.add_argument("--part-mib", type=int, default=15)
    parser.add_argument("--parts", type=int, default=4, help="of the state, at most")
    parser.add_argument("--table", type=Path, help="results.json")
    parser.add_argument("--doc", type=Path, default=Path("docs/r1.md"))
    asked = parser.parse_args(args)
    try:
        if asked.table:
            write_r1_table(asked.table, asked.doc)
            return 0
        if asked.out is None:
            parser.error("wants --out, or --table")
        lookup(asked.recipe, R1_RECIPES, at="--recipe")
        return run_all(asked)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
