"""Kernels run where they can and are wanted, and nowhere else."""

import logging
import re
from pathlib import Path

import pytest
import torch

from nalar.config import ConfigError
from nalar.kernels import switch


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.delenv(switch.OFF, raising=False)
    for cached in (switch.refuse, switch._is_off, switch._can_compile):
        cached.cache_clear()
    yield
    for cached in (switch.refuse, switch._is_off, switch._can_compile):
        cached.cache_clear()


class OnGpu:
    """What `runs` asks of a tensor."""

    is_cuda, device = True, torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(switch.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_no_kernel_runs_on_a_cpu():
    assert not switch.runs("rms_norm", torch.ones(1))


def test_a_kernel_can_be_forced_and_kept_off_and_goes_back_to_what_it_was(gpu):
    with switch.forced("rms_norm"):
        assert switch.runs("rms_norm", torch.ones(1))
        assert not switch.runs("router", torch.ones(1))
        with switch.forced("rms_norm", on=False):
            assert not switch.runs("rms_norm", OnGpu())
        assert switch.runs("rms_norm", torch.ones(1))
    assert not switch.runs("rms_norm", torch.ones(1))


@pytest.mark.parametrize(
    ("off", "left"),
    [
        ("", {"rotary", "router"}),
        ("rotary", {"router"}),
        ("router, rotary", set()),
        ("all", set()),
    ],
)
def test_the_environment_switches_kernels_off(gpu, monkeypatch, off, left):
    monkeypatch.setenv(switch.OFF, off)
    assert {name for name in ("rotary", "router") if switch.runs(name, OnGpu())} == left


def test_an_older_gpu_gets_the_plain_forms_and_is_told_once(gpu, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with caplog.at_level(logging.WARNING):
        assert not any(switch.runs(name, OnGpu()) for name in switch.NAMES)
    assert caplog.text.count("compute capability 8.0, here is (7, 5)") == 1


def test_without_triton_the_plain_forms_compute(gpu, monkeypatch, caplog):
    monkeypatch.setattr(switch.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert not switch.runs("a", OnGpu())
    assert "triton is not installed" in caplog.text


@pytest.mark.parametrize("name", ["rmsnorm", *switch.STAND_INS])
def test_what_is_no_kernel_cannot_be_switched_off(gpu, monkeypatch, name):
    monkeypatch.setenv(switch.OFF, f"router,{name}")
    with pytest.raises(ConfigError, match=name):
        switch.runs("router", OnGpu())


def test_all_names_of_kernels_are_listed():
    package = Path(switch.__file__).parent.parent
    sources = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    asked = set(re.findall(r'(?:switch\.|\b_)runs\("(\w+)"', sources))
    assert asked | {"optimizer"} == {*switch.NAMES, *switch.STAND_INS}
