"""Boxes of every tier that this machine has; what it lacks is skipped and says why."""

import os

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
        # CI installs what every tier needs.
        give_up = pytest.fail if os.environ.get("NALAR_ALL_TIERS") else pytest.skip
        give_up(f"{request.param} does not work here: {why}")
    made = Box(SandboxConfig(tier=request.param, **LIMITS))
    assert made.tier == request.param
    yield made
    made.close()
