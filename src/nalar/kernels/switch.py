"""Which of our own GPU kernels run. Each has a plain form in torch, which computes where the kernel does not.

`NALAR_KERNELS_OFF` switches some off, by name and separated by commas, or `all`. Imports no compiler.
"""

import functools
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nalar.config import ConfigError

NAMES = (
    "few_row_dense",
    "few_row_experts",
    "head",
    "linked_launches",
    "optimizer",
    "paged_attention",
    "projections",
    "rms_norm",
    "rotary",
    "route_sort",
    "router",
    "rows",
    "sample",
    "spread_choices",
    "sum_choices",
    "swiglu",
    "token_logprobs",
)
"""What each computes: docs/engine.md, docs/performance.md."""
STAND_INS = ("routed_experts",)
"""Forms that a GPU always takes and a test may take elsewhere; the kernels in them have names of their own."""
OFF = "NALAR_KERNELS_OFF"
LEAST_CAPABILITY = (8, 0)
"""bfloat16 products and asynchronous copies: Ampere and later."""

_log = logging.getLogger(__name__)
_forced: dict[str, bool] = {}


def runs(name: str, x: Tensor) -> bool:
    """Whether the kernel of this name is to run on the device of x; whether it takes the shapes is its own matter."""
    if name in _forced:
        return _forced[name]
    return x.is_cuda and not _is_off(name) and _can_compile(x.device.index or 0)


def is_forced(name: str) -> bool:
    """Whether a test has it run where it would not."""
    return _forced.get(name, False)


@contextmanager
def forced(*names: str, on: bool = True) -> Iterator[None]:
    """Run these kernels, or do not, wherever tensors are: for tests under Triton's interpreter, and to compare."""
    before = dict(_forced)
    _forced.update(dict.fromkeys(names, on))
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


@functools.cache
def refuse(name: str, why: str) -> None:
    """Say once that a kernel does not take what came, so that the plain form computes."""
    _log.warning("kernel %s: %s; the plain form in torch computes instead", name, why)


@functools.cache
def _is_off(name: str) -> bool:
    off = {word.strip() for word in os.environ.get(OFF, "").split(",")} - {""}
    unknown = sorted(off - {*NAMES, "all"})
    if unknown:
        raise ConfigError(at=OFF, got=unknown[0], want=f"all, or any of {', '.join(NAMES)}")
    return bool(off & {name, "all"})


@functools.cache
def _can_compile(device: int) -> bool:
    if importlib.util.find_spec("triton") is None:
        refuse("all", "triton is not installed")
        return False
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip or capability < LEAST_CAPABILITY:
        refuse("all", f"made for NVIDIA GPUs from compute capability 8.0, here is {capability}")
        return False
    return True
