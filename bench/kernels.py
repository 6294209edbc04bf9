"""Each kernel of our own beside its plain form in torch, and beside that form under torch.compile.

    PYTHONPATH=src python bench/kernels.py --device cuda --out bench/results/kernels-nvidia-h200.json
    PYTHONPATH=src python bench/kernels.py --device cpu --tiny --out /tmp/kernels.json    # only walks through

At shapes of the 544M mixture of experts and of Qwen3-0.6B, in bfloat16 on a GPU. Of each: outputs against the plain
form with memory full of NaN, equal bits over repeated runs, then time. Calls take turns on tensors of their own, more
together than the L2 cache holds, as nodes of one CUDA graph; the roofline is the larger of bytes over measured
bandwidth and operations over the measured ceiling of matrix products. Ends with 1 where a kernel is wrong.
"""

import os
import sys

if "cpu" in sys.argv:  # read when Triton loads, which torch does
    os.environ.setdefault("TRITON_INTERPRET", "1")

import argparse
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernel_cases import Case, Place, cases
from nalar.kernels import switch
from record import Row, record
from timing import Limit, microseconds, section

REPEATS = 20
"""Runs that must agree to the bit."""
MOST_COPIES = 32
"""Sets of tensors that calls take turns on."""


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory is full of NaN, and of the largest integers: what a kernel leaves unwritten shows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def outputs(case: Case, call: Any, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """What the call returns, and behind it the gradients that the case asks for."""
    if not case.grads:
        with torch.no_grad():
            found = call(*args)
        return found if isinstance(found, tuple) else (found,)
    wanted = [args[i] for i in case.grads]
    found = call(*args)
    first = found[0] if isinstance(found, tuple) else found
    # The output itself stands in for the gradient that comes from above.
    return (first.detach(), *torch.autograd.grad(first, wanted, first.detach()))


def check(case: Case, args: tuple[Any, ...], repeats: int) -> float:
    """The largest error against the plain form; inf where runs differ or something was left unwritten."""
    with switch.forced(*case.kernels, on=False):
        expected = outputs(case, case.call, args)
    with switch.forced(*case.kernels), poisoned():
        found = [tuple(x.clone() for x in outputs(case, case.call, args)) for _ in range(repeats)]
    for other in found[1:]:
        if not all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True)):
            return float("inf")
    return case.compare(found[0], expected)


def copies_of(case: Case, place: Place) -> list[tuple[Any, ...]]:
    args = case.make(place)
    held = sum(x.nbytes for x in args if isinstance(x, Tensor))
    wanted = -(-2 * place.cache_bytes // max(held, 1)) if place.cache_bytes else 1
    return [args, *(case.make(place) for _ in range(min(wanted, MOST_COPIES) - 1))]


def timed(case: Case, place: Place, *, with_compiler: bool) -> dict[str, float]:
    """Microseconds of each way."""
    copies = copies_of(case, place)
    taken: dict[str, float] = {}

    def measure(way: str, call: Any) -> None:
        calls = [lambda args=args: outputs(case, call, args) for args in copies]
        taken[way], is_recorded = microseconds(calls, place.device)
        if place.device.type == "cuda" and not is_recorded:
            print(f"{case.name}: {way} was timed with its launches", file=sys.stderr)

    with switch.forced(*case.kernels):
        measure("ours", case.call)
    with switch.forced(*case.kernels, on=False):
        measure("torch", case.call)
        if with_compiler:
            torch._dynamo.reset()
            try:
                measure("torch_compiled", torch.compile(case.call, dynamic=False))
            except Exception as error:  # whatever a compiler raises: the other ways still count
                print(f"{case.name}: torch.compile: {str(error).splitlines()[0]}", file=sys.stderr)
    return taken


def rows_of(case: Case, place: Place, limit: Limit, taken: dict[str, float]) -> list[Row]:
    least = limit.least_s(*case.cost(*case.make(place))) * 1e6
    others = {way: us for way, us in taken.items() if way != "ours"}
    best = min(others, key=others.__getitem__)
    rows = [Row(case.name, taken["ours"], "us", best, others[best], least / taken["ours"])]
    for way, us in others.items():
        rows.append(Row(f"{case.name}_{way}", us, "us", roofline_frac=least / us))
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Kernels beside their plain forms.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="walk through it without measuring")
    parser.add_argument("--only", default="", help="cases whose names hold this pattern")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    place = Place(torch.device(args.device), args.tiny)
    limit = Limit(place.device, place.dtype)
    rows: list[Row] = []
    wrong = []
    for case in cases(args.tiny):
        if not re.search(args.only, case.name):
            continue
        with section(case.name):
            error = check(case, case.make(place), 2 if args.tiny else REPEATS)
            rows.append(Row(f"{case.name}_error", error, "of the largest"))
            if not error <= case.tolerance(place.dtype):
                wrong.append(f"{case.name}: {error:.3g}")
            compiles = not (args.tiny or args.no_compile)
            rows += rows_of(case, place, limit, timed(case, place, with_compiler=compiles))
    record(args.out, f"python bench/kernels.py --device {args.device} --out {args.out}", rows)
    if wrong:
        sys.exit("wrong: " + ", ".join(wrong))


if __name__ == "__main__":
    main()
