"""What this machine is and what it draws: environment, memory, energy counters."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of settings in glibc's malloc.h."""
POWERCAP = Path("/sys/class/powercap")
GPUS = Path("/proc/driver/nvidia/gpus")


class Environment(BaseModel):
    """Where a run took place. Unknown keys of later versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    python: str
    packages: dict[str, str | None]
    platform: str
    cpu: str
    cores: int
    memory_bytes: int
    gpu: str | None = None
    """Names, as the driver of NVIDIA's has them."""
    commit: str | None
    dirty: bool | None


def environment() -> Environment:
    """This machine and this code. Looks torch's version up without importing it."""
    commit = (
        _git("rev-parse", "HEAD")
        if _git("ls-files", "--error-unmatch", Path(__file__).name)
        else None
    )
    changes = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return Environment(
        python=platform.python_version(),
        packages={
            name: _version(name)
            for name in ("nalar", "torch", "numpy", "tokenizers", "safetensors")
        },
        platform=platform.platform(),
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        gpu=_gpus(),
        commit=commit,
        dirty=None if changes is None else bool(changes),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        found = re.search(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _gpus() -> str | None:
    texts = [_text(path) or "" for path in sorted(GPUS.glob("*/information"))]
    found = [re.search(r"^Model:\s*(.+)$", text, re.MULTILINE) for text in texts]
    return ", ".join(name[1].strip() for name in found if name) or None


def _memory_bytes() -> int:
    """What this process may use: the machine's memory, or its container's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def free_memory_bytes() -> int:
    """What this process may still take, by what the kernel says; where it says nothing, half of all."""
    found = re.search(
        r"^MemAvailable:\s*(\d+) kB$", _text(Path("/proc/meminfo")) or "", re.MULTILINE
    )
    available = int(found[1]) * 1024 if found else _memory_bytes() // 2
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max"
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        available = min(available, int(limit) - int(used))
    return available


def keep_freed_memory() -> None:
    """Blocks of up to 32 MiB that are freed stay with this process, up to 1 GiB, for the next that are asked for.

    glibc gives them back to the system and has every page of the next ones mapped anew, which took a tenth of a
    training step. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_MMAP_THRESHOLD, 2**25)


def keep_old_objects() -> None:
    """Python's collector looks no longer through what is there now: it stays until the process ends.

    Objects of all libraries are a million and more, and each look takes a third of a second, which whoever makes lists
    of tokens pays every few steps.
    """
    gc.collect()
    gc.freeze()


def _git(*words: str) -> str | None:
    """What git says about this file's repository; None where git, or the repository, is missing."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class EnergyCounter:
    """Energy of all CPU packages and their memory since creation, by RAPL. `used_wh`: None where not readable."""

    def __init__(self) -> None:
        self.used_wh: float | None = 0.0
        # Only packages and memory: cores are part of a package, and the platform's own zone counts packages again.
        self._zones = [
            zone
            for zone in POWERCAP.glob("intel-rapl:*")
            if re.match(r"package|dram", _text(zone / "name") or "")
        ]
        self._last_uj = [self._read_uj(zone) for zone in self._zones]
        if not self._zones or None in self._last_uj:
            self.used_wh = None

    def read_wh(self) -> float | None:
        if self.used_wh is None:
            return None
        for i, zone in enumerate(self._zones):
            new_uj, old_uj = self._read_uj(zone), self._last_uj[i]
            if new_uj is None or old_uj is None:
                self.used_wh = None
                return None
            # A counter that went back has wrapped around at its range.
            wrapped_uj = int(_text(zone / "max_energy_range_uj") or 0) if new_uj < old_uj else 0
            self.used_wh += (new_uj - old_uj + wrapped_uj) / 3.6e9
            self._last_uj[i] = new_uj
        return self.used_wh

    @staticmethod
    def _read_uj(zone: Path) -> int | None:
        text = _text(zone / "energy_uj")  # readable by root alone on most machines
        return int(text) if text else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
