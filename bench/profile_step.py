"""What a device does in a step: the kernels that take longest, how long it does nothing, who waits for it."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::item")
SHOWN, NAME = 30, 110


def report(step: Callable[[int], object], device: torch.device, *, steps: int) -> str:
    """Of `steps` steps behind one that warms the profiler up; on a CPU, its operations."""
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as warm_up:
        step(0)
        _wait(device)
    del warm_up
    with profile(activities=activities) as seen:
        for i in range(steps):
            step(i)
        _wait(device)
    events: list[Any] = list(seen.events() or [])
    wanted = device.type.upper()
    done = [e for e in events if e.device_type.name == wanted and not _is_note(e)]
    spans = [(e.name, e.time_range.start, e.time_range.end) for e in done]
    waits = Counter(e.name for e in events if e.name in WAITS)
    return "\n".join([*table(spans, steps), f"waits a step: {_each(waits, steps)}"])


def table(spans: Iterable[tuple[str, float, float]], steps: int) -> list[str]:
    """spans: name, start and end in microseconds. Lines: totals, then the names that take longest."""
    spans = list(spans)
    if not spans:
        return ["nothing ran"]
    whole = max(end for *_, end in spans) - min(start for _, start, _ in spans)
    busy = union(((start, end) for _, start, end in spans))
    total: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for name, start, end in spans:
        total[name] += end - start  # type: ignore[assignment]  # microseconds are floats
        count[name] += 1
    lines = [
        f"a step: {whole / steps / 1e3:.2f} ms, idle {1 - busy / whole:.1%}, "
        f"{len(spans) / steps:.0f} kernels",
        f"{'ms a step':>10} {'share':>6} {'calls':>7}  kernel",
    ]
    for name, taken in total.most_common(SHOWN):
        share, calls = taken / busy, count[name] / steps
        lines.append(f"{taken / steps / 1e3:10.3f} {share:6.1%} {calls:7.1f}  {name[:NAME]}")
    return lines


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of what the intervals cover together."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        covered += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return covered


def _is_note(event: Any) -> bool:
    """Ranges that somebody named are no work of the device."""
    return bool(getattr(event, "is_user_annotation", False)) or event.name.startswith(
        "ProfilerStep"
    )


def _each(waits: Counter[str], steps: int) -> str:
    return ", ".join(f"{name} {n / steps:.1f}" for name, n in waits.items()) or "none"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
