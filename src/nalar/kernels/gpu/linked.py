"""Launches that overlap (programmatic dependent launch, Hopper and later).

A kernel that is launched linked may begin before the one in front of it is through; it waits for that in its first
line, when its blocks are placed and its arguments read. Of the 2 us that a small kernel takes, half goes into this.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nalar.kernels import switch

LEAST_CAPABILITY = (9, 0)


def linked(x: Tensor) -> dict[str, Any]:
    """What a launcher adds to the arguments of a kernel that begins with `wait`."""
    if switch.runs("linked_launches", x) and _can_link(x.device.index or 0):
        return {"LINKED": True, "launch_pdl": True}
    return {"LINKED": False}


@functools.cache
def _can_link(device: int) -> bool:
    return not torch.cuda.is_available() or (
        torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
    )


@triton.jit
def wait(LINKED: tl.constexpr):
    """Until all that was launched before is through; what comes behind may be placed meanwhile."""
    if LINKED:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
