"""Boxes of every tier that this machine has; what it lacks is skipped and says why."""

import pytest

from nalar.sandbox.box import Box
from nalar.sandbox.config import SandboxConfig

LIMITS = {"wall_s": 1.5, "cpu_s": 1, "memory_bytes": 256 * 2**20, "output_bytes": 100_000}


@pytest.fixture(scope="session")
def objections():
    box = Box()
    yield box.objections
    box.close()


@pytest.fixture(scope="session", params=["namespaces", "bubblewrap"])
def box(request, objections):
    if why := objections[request.param]:
        pytest.skip(f"{request.param} does not work here: {why}")
    made = Box(SandboxConfig(tier=request.param, **LIMITS))
    assert made.tier == request.param
    yield made
    made.close()
