"""A synthetic run, made once: tests that only read it share it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from nalar.evals.report import Report, build_report
from nalar.run import Run


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    place = Path(__file__).with_name("synthetic_run.py")
    spec = importlib.util.spec_from_file_location("synthetic_run", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def finished_run(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return synthetic.make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def report(finished_run: Run) -> Report:
    return build_report(finished_run)
