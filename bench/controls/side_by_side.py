"""Processes side by side on one machine until the time is up: each stops itself in time, or is killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

CLOSING_S = 40.0
"""Before the end of a call: no run goes on, so that evaluations end, and results are joined and packed."""
GRACE_S = 15.0
"""What a process that overslept gets on top of it before it is killed, which costs it what it did since it saved."""
LEAST_S = 30.0
"""A run is not started for less."""
_LOOK_S = 0.5


class Named(Protocol):
    """A job."""

    @property
    def name(self) -> str: ...


J = TypeVar("J", bound=Named)
Start = Callable[[J, float], subprocess.Popen[bytes]]
"""Begins a job, or goes on with it, for so many seconds at most."""


@dataclass
class Going(Generic[J]):
    """A process that works on a job."""

    job: J
    process: subprocess.Popen[bytes]


def work_on(
    jobs: Sequence[J],
    start: Start[J],
    *,
    workers: int,
    until: float,
    is_ready: Callable[[J], bool] = lambda _job: True,
) -> None:
    """As many at a time as there are workers, in order; a job that is not ready lets others go first.

    until: by the clock of time.monotonic(). Ends before it where nothing is under way that a waiting job waits for.
    """
    waiting, going = list(jobs), list[Going[J]]()
    while waiting or going:
        for one in [g for g in going if g.process.poll() is not None]:
            going.remove(one)
            print(f"{one.job.name}: process ended with {one.process.returncode}", flush=True)
        rest = until - time.monotonic()
        ready = [job for job in waiting if len(going) < workers and is_ready(job)]
        if rest <= LEAST_S or not (ready or going):
            waiting.clear()
        for job in ready[: workers - len(going)] if rest > LEAST_S else ():
            waiting.remove(job)
            going.append(Going(job, start(job, rest)))
        if rest < -GRACE_S:
            for one in going:
                print(f"{one.job.name}: killed, it did not stop in time", flush=True)
                one.process.kill()
                one.process.wait()
            return
        time.sleep(_LOOK_S)


def python(
    module: str, args: Sequence[str], *, log: Path, threads: int, on_cpu: bool
) -> subprocess.Popen[bytes]:
    """`python -m module args` of so many threads, with the paths of this process; what it says is added to `log`."""
    kept = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", module, *args],
            stdout=file,
            stderr=file,
            env=os.environ | kept | hidden | paths,
        )
