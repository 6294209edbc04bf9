"""What is installed is all that the package is: built as a wheel, and imported from there."""

import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "nalar"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        # Looking for the module pip would switch off, for the whole process, the distutils that setuptools brings:
        # before Python 3.12 nothing could import setuptools any more, TorchInductor among them.
        not all(any(distributions(name=name)) for name in ("setuptools", "pip")),
        reason="building a wheel wants pip and setuptools",
    ),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy: a build leaves folders beside its source."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(PACKAGE, folder / "src/nalar", ignore=shutil.ignore_patterns("__pycache__"))
    words = "-m pip wheel --no-deps --no-build-isolation --no-index --quiet -w dist ."
    built = subprocess.run(
        [sys.executable, *words.split()], cwd=folder, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (path,) = (folder / "dist").glob("nalar-*.whl")
    return path


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    """Templates, the page and the mark of typed packages too: what a build forgets fails at a user's."""
    own = {
        path.relative_to(ROOT / "src").as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        told = message_from_string(archive.read(metadata).decode())
    assert own - names == set()
    assert {name for name in names - own if ".dist-info/" not in name} == set()
    assert "serve" in told.get_all("Provides-Extra")
    assert told["License-Expression"] == "MIT"


def test_it_runs_from_where_it_was_unpacked(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import nalar.config
assert nalar.config.__file__.startswith({str(tmp_path)!r}), nalar.config.__file__
from nalar.cli.main import main
for words in (["--help"], ["chat", "--help"], ["push", "--help"]):
    try:
        assert main(words) == 0
    except SystemExit as stop:
        assert not stop.code
"""
    ran = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "usage: nalar" in ran.stdout
