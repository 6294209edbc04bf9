"""The interpreter knows no types, no shared memory and no registers: here kernels are compiled as for an H200."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
MOST_SHARED = 227 * 1024


@pytest.mark.slow
def test_decoding_kernels_compile_for_hopper_and_fit(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("hopper.py"), "1", "256"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kernels = {tuple(line.split()) for line in done.stdout.splitlines()}
    assert {name for name, *_ in kernels} == {
        "_norm_row",
        "_latent_entry",
        "_grouped_entry",
        "_attend_part",
        "_join_parts",
    }
    for name, shared, _registers, spilled in kernels:
        assert int(shared) <= MOST_SHARED and int(spilled) == 0, (name, shared, spilled)
