import gc
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nalar import machine
from nalar.machine import EnergyCounter, environment, keep_old_objects


def write_zone(root: Path, zone: str, name: str, uj: int) -> None:
    (root / zone).mkdir(exist_ok=True)
    (root / zone / "name").write_text(f"{name}\n")
    (root / zone / "energy_uj").write_text(f"{uj}\n")
    (root / zone / "max_energy_range_uj").write_text("10000000000\n")


def test_energy_adds_packages_and_memory_and_follows_a_counter_that_wraps(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "POWERCAP", tmp_path)
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "psys",
    }
    for zone, name in zones.items():
        write_zone(tmp_path, zone, name, 9_000_000_000)
    counter = EnergyCounter()
    for zone, name in zones.items():
        write_zone(tmp_path, zone, name, 2_600_000_000)  # 3.6e9 microjoules on: one watt-hour each
    assert counter.read_wh() == pytest.approx(2.0)
    assert counter.read_wh() == pytest.approx(2.0)


def test_energy_is_none_rather_than_zero_where_it_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "POWERCAP", tmp_path)
    assert EnergyCounter().read_wh() is None
    write_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    counter = EnergyCounter()
    assert counter.read_wh() == 0.0
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert counter.read_wh() is None


def test_gpus_go_by_the_names_that_their_driver_has(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "GPUS", tmp_path)
    assert environment().gpu is None
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
        text = f"Model: \t\t NVIDIA X{number}\nIRQ: 1\n"
        (tmp_path / str(number) / "information").write_text(text)
    assert environment().gpu == "NVIDIA X0, NVIDIA X1"


def test_the_environment_is_filled_in():
    here = environment()
    assert here.cores >= 1
    assert here.memory_bytes > 1 << 20
    assert here.cpu
    assert here.python.startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert (here.commit is None) == (here.dirty is None)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_commit_of_somebody_elses_repository_is_not_ours(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        identity = [
            "-c",
            "user.name=n",
            "-c",
            "user.email=n@example.org",
            "-c",
            "commit.gpgsign=false",
        ]
        subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True
        )

    git("init")
    (tmp_path / "machine.py").write_text("# installed here, not tracked\n")
    (tmp_path / "theirs.py").write_text("")
    git("add", "theirs.py")
    git("commit", "-m", "theirs")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert environment().commit is None
    git("add", "machine.py")
    git("commit", "-m", "ours")
    assert len(environment().commit or "") == 40
    assert environment().dirty is False
    (tmp_path / "machine.py").write_text("# changed\n")
    assert environment().dirty is True


def test_old_objects_are_no_longer_looked_through() -> None:
    gc.unfreeze()
    try:
        old = [[]]
        assert any(x is old for x in gc.get_objects())
        keep_old_objects()
        new = [[]]
        tracked = gc.get_objects()
        assert any(x is new for x in tracked) and not any(x is old for x in tracked)
    finally:
        gc.unfreeze()
