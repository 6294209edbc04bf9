"""No test here uses the network: what is not in a cache prepared by hand is not there."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from nalar.config import UserError
from nalar.model.hub import DESCRIPTIONS, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one model, as the hub's library lays it out, and no network."""
    repo = tmp_path / "models--house--model"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "0a").write_text("{}")
    (snapshot / "config.json").symlink_to(Path("../../blobs/0a"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_folder_is_itself(tmp_path):
    source = locate(tmp_path)
    assert (source.folder, source.hub_id) == (tmp_path, None)
    source.fetch(["model.safetensors"])  # nothing to do, and no error: reading says what is missing


def test_a_model_in_the_cache_needs_no_network(cache):
    source = locate("house/model")
    assert source.hub_id == "house/model"
    assert source.folder == cache / "models--house--model" / "snapshots" / COMMIT
    assert (source.folder / "config.json").read_text() == "{}"
    source.fetch(["config.json"])
    with pytest.raises(UserError, match="no complete copy in the hub's cache"):
        source.fetch(["model.safetensors"])


def test_a_model_that_is_nowhere_says_why(cache):
    with pytest.raises(UserError, match=r"other/model: got no such folder.*HF_HUB_OFFLINE is set"):
        locate("other/model")


@pytest.mark.parametrize(
    "name",
    ["model", "a/b/c", "../model", "/no/such", "./model", "house/", "house/mo del", "-x/y", ""],
)
def test_what_is_no_id_is_never_asked_of_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    if name:
        with pytest.raises(UserError, match="no such folder"):
            locate(name)
    else:
        assert locate(name or ".").hub_id is None


def test_a_file_is_no_model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(UserError, match="GGUF weights, which nalar does not read yet"):
        locate(path)
    with pytest.raises(UserError, match="got a file"):
        locate(path.rename(tmp_path / "model.safetensors"))


def test_weights_are_asked_for_after_the_description_and_of_its_commit(tmp_path, monkeypatch):
    asked = []

    def answer(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    locate("house/model").fetch(["model-1-of-1.safetensors"])
    assert asked == [
        ("house/model", None, list(DESCRIPTIONS)),
        ("house/model", COMMIT, ["model-1-of-1.safetensors"]),
    ]
    assert not any(name.endswith((".py", ".bin", "*")) for name in DESCRIPTIONS)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RepositoryNotFoundError, "no such model on the hub"),
        (GatedRepoError, "a gated model"),
        (httpx.ConnectError, "while the hub cannot be reached"),
        (httpx.RemoteProtocolError, "cut off"),
        (ConnectionResetError, "cut off"),
    ],
)
def test_what_the_hub_refuses_is_bad_input(error, says, monkeypatch):
    response = httpx.Response(403, request=httpx.Request("GET", "https://hub.invalid"))

    def refuse(*_args, **_kwargs):
        raise (
            error("cut off", response=response)
            if issubclass(error, HfHubHTTPError)
            else error("cut off")
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=says):
        locate("house/model")


def test_the_environment_is_what_decides(tmp_path):
    """HF_HUB_OFFLINE and HF_HOME as a user sets them, in a process of its own."""
    program = "from nalar.model.hub import locate; locate('house/model')"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "while HF_HUB_OFFLINE is set" in done.stderr
