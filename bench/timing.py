"""How long things take, and how fast this machine could be at best."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch

from nalar.kernels.ceiling import measure_ceiling
from nalar.machine import keep_old_objects

Run = Callable[[], object]

MOST_REPLAYS, BUDGET_S = 20, 0.3


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(runs: dict[str, Run], device: torch.device, repeats: int) -> dict[str, float]:
    """Median of each, all in turn, after one round that does not count."""
    keep_old_objects()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 1):
        for name, run in runs.items():
            wait(device)
            started = time.perf_counter()
            run()
            wait(device)
            if i:
                taken[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in taken.items()}


@contextmanager
def section(name: str) -> Iterator[None]:
    """Say on stderr how long a part of a bench took in all."""
    started = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)


def microseconds(calls: Sequence[Run], device: torch.device) -> tuple[float, bool]:
    """One call, on average over all in turn; and whether they were nodes of one CUDA graph.

    Calls on tensors of their own, more together than the caches hold, find what they read in memory, as the kernels of
    a model do. Where a graph cannot be recorded, launches count too.
    """
    for call in calls[:2]:
        call()
    wait(device)
    if device.type == "cpu":
        started = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - started) / len(calls) * 1e6, False
    graph = _recorded(calls)

    def all_of_them() -> None:
        for call in calls:
            call()

    run = all_of_them if graph is None else graph.replay
    return _event_us(run) / len(calls), graph is not None


def _recorded(calls: Sequence[Run]) -> torch.cuda.CUDAGraph | None:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
    except RuntimeError as error:
        torch.cuda.synchronize()
        print(f"not recorded as a graph: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return graph


def _event_us(run: Run) -> float:
    """Median time of a run, without the wait for its launch."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    once_s = time.perf_counter() - started
    pairs = []
    for _ in range(min(max(int(BUDGET_S / once_s), 3), MOST_REPLAYS)):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return 1e3 * float(median(start.elapsed_time(end) for start, end in pairs))


class Limit:
    """What this machine could do at best."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.bytes_per_s = bandwidth(device)
        self.flops_per_s = measure_ceiling(device, dtype).flops_per_s

    def least_s(self, moved_bytes: float, flops: float) -> float:
        return max(moved_bytes / self.bytes_per_s, flops / self.flops_per_s)


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written."""
    size = 2**31 if device.type == "cuda" else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = seconds({"copy": lambda: target.copy_(source)}, device, 5)
    return 2 * size / taken["copy"]
