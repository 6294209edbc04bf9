import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernel_cases import Case, Place, cases, difference

pytest.importorskip("triton")


@pytest.mark.slow  # a minute and a half of Triton's interpreter; each kernel has its own tests
def test_every_case_is_walked_through_and_right(tmp_path, capsys):
    out = tmp_path / "kernels.json"
    kernels.main(["--device", "cpu", "--tiny", "--out", str(out)])
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    for case in cases(tiny=True):
        assert rows[case.name]["peer"] == "torch" and rows[case.name]["value"] > 0
        assert rows[f"{case.name}_error"]["value"] < 1e-4
    assert "rows_b3" in capsys.readouterr().out


@pytest.mark.slow
def test_one_that_fails_does_not_cost_the_others_their_figures(tmp_path, monkeypatch):
    def fails(*args):
        raise RuntimeError("no such kernel")

    first, second = cases(tiny=True)[1:3]
    broken = dataclasses.replace(first, call=fails)
    monkeypatch.setattr(kernels, "cases", lambda tiny: [broken, second])
    out = tmp_path / "kernels.json"
    with pytest.raises(SystemExit, match=f"{first.name}.*no such kernel"):
        kernels.main(["--device", "cpu", "--tiny", "--out", str(out)])
    names = {row["name"] for row in json.loads(out.read_text())["rows"]}
    assert second.name in names and first.name not in names


def test_the_names_of_cases_tell_them_apart():
    for tiny in (True, False):
        names = [case.name for case in cases(tiny)]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch("[a-z0-9_]+", name) for name in names)


def checked(call):
    case = Case(
        "wrong", ("nobody",), call, lambda place: (place.normal(4),), lambda x: (x.nbytes, 0)
    )
    return kernels.check(case, case.make(Place(torch.device("cpu"), True)), 3)


def test_what_a_kernel_leaves_unwritten_or_computes_otherwise_each_time_is_found():
    def unwritten(x):
        out = torch.empty_like(x)
        out[1:] = x[1:]
        return out

    times = iter(range(100))
    assert checked(unwritten) == math.inf
    assert checked(lambda x: x + next(times)) == math.inf
    assert checked(lambda x: x * 2) == 0


def test_an_error_is_a_share_of_the_largest_number():
    one = torch.tensor([4.0, 1.0])
    assert difference((one + torch.tensor([0.0, 0.1]),), (one,)) == pytest.approx(0.025)
    assert difference((one * math.nan,), (one,)) == math.inf
    assert difference((torch.tensor([1]),), (torch.tensor([2]),)) == math.inf


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper_at_the_shapes_that_count(tmp_path):
    """The interpreter knows no types, no shared memory and no registers."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("hopper_cases.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kernels = [line.split() for line in done.stdout.splitlines()]
    assert {"_add_tiles", "_look_up", "_attend_part"} <= {name for name, *_ in kernels}
    for name, shared, _registers, spilled in kernels:
        assert int(shared) <= 227 * 1024 and int(spilled) == 0, (name, shared, spilled)
