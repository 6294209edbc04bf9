"""One thread for every test: small tensors gain nothing by more, and idle threads that spin slow each other down."""

import os

import pytest

# Read when torch loads, so before any test imports it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
if not os.path.exists("/dev/nvidia0"):  # noqa: PTH110 - nothing is imported yet
    # Read where a kernel is defined. The interpreter knows nothing of races, shared memory or speed.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def device():
    """Where tests of kernels have their tensors: on a GPU, if there is one; else Triton's interpreter runs them."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
