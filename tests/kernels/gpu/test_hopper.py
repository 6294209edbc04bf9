"""The interpreter knows no types, no shared memory and no registers: here kernels are compiled as for an H200."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

pytestmark = pytest.mark.few(3)
MOST_SHARED = 227 * 1024


def compiled(cache, *args):
    """Name, bytes of shared memory, registers and bytes of them spilled, of each kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("hopper.py"), *args],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {tuple(line.split()) for line in done.stdout.splitlines()}


def assert_fit(kernels):
    for name, shared, _registers, spilled in kernels:
        assert int(shared) <= MOST_SHARED and int(spilled) == 0, (name, shared, spilled)


@pytest.mark.slow
def test_training_kernels_compile_for_hopper_and_fit(tmp_path):
    kernels = compiled(tmp_path, "train")
    names = {"_rows_kernel", "_adamw_kernel", "_heading_kernel", "_apply_kernel"}
    assert {name for name, *_ in kernels} == names
    assert_fit(kernels)


@pytest.mark.slow
def test_decoding_kernels_compile_for_hopper_and_fit(tmp_path):
    kernels = compiled(tmp_path, "1", "256")
    assert {name for name, *_ in kernels} == {
        "_norm_row",
        "_latent_entry",
        "_grouped_entry",
        "_attend_part",
        "_join_parts",
        "_project",
    }
    assert_fit(kernels)
